"""The reward of an action: easy points for its shape, a large factor for what is hard to get right.

Source: arXiv 2507.17842, section 3. What the paper leaves open is settled in the README.
"""

from dataclasses import dataclass

from lensd_shop_r1.output import Predicted
from lensd_shop_r1.params import FIELDS, Reference, ShopR1Params
from lensd_shop_r1.rouge import rouge_l


@dataclass(frozen=True, slots=True)
class ActionReward:
    """Parts of the reward, 0 where there is none; a ROUGE-L is ``None`` where nothing was compared.

    ``is_hit``: the field scaled by ``dars`` reached the threshold.
    """

    type: float = 0.0
    attribute: float = 0.0
    value: float = 0.0
    rouge_name: float | None = None
    rouge_text: float | None = None
    is_hit: bool = False


def reward_action(predicted: Predicted, true: Reference, params: ShopR1Params) -> ActionReward:
    """Nothing at all is earned with the wrong type."""
    if predicted.type != true.type:
        return ActionReward()
    if true.type == "terminate":
        return ActionReward(type=params.type_reward)
    rouge_name = rouge_l(predicted.name, true.name or "")
    if true.type == "click":
        counted = _counted(rouge_name, params)
        return ActionReward(
            type=params.type_reward,
            attribute=params.click_name_reward if predicted.name.strip() else 0.0,
            value=params.dars * counted,
            rouge_name=rouge_name,
            is_hit=counted > 0,
        )
    rouge_text = rouge_l(predicted.text, true.text or "")
    counted = _counted(rouge_text, params)
    return ActionReward(
        type=params.type_reward,
        attribute=(params.type_name_reward if predicted.name.strip() else 0.0)
        + (params.type_text_reward if predicted.text.strip() else 0.0),
        value=params.type_name_factor * _counted(rouge_name, params) + params.dars * counted,
        rouge_name=rouge_name,
        rouge_text=rouge_text,
        is_hit=counted > 0,
    )


def is_exact(predicted: Predicted, true: Reference) -> bool:
    """Whether type and every field agree, but for case and white space around them."""
    return predicted.type == true.type and all(
        _plain(getattr(predicted, field)) == _plain(getattr(true, field) or "") for field in FIELDS[true.type]
    )


def _counted(rouge: float, params: ShopR1Params) -> float:
    return rouge if rouge >= params.rouge_threshold else 0.0


def _plain(text: str) -> str:
    return text.strip().lower()
