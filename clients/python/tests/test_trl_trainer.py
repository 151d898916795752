"""The reward function inside TRL's own GRPOTrainer. Skipped where ``trl`` is not installed."""

import json
from pathlib import Path
from typing import Any

import pytest

from clients.python.tests.reward_server import RewardServer
from lensd_client.trl import ShopR1Reward

trl = pytest.importorskip("trl", reason="trl is not installed: pip install trl")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of TRL and of what it imports
]

REFERENCES = [
    {"type": "click", "name": "buy", "text": None},
    {"type": "terminate", "name": None, "text": None},
]


@pytest.mark.parametrize("conversational", [False, True])
def test_two_steps_of_grpo_learn_from_it(fake: Any, tmp_path: Path, conversational: bool) -> None:
    from datasets import Dataset

    from lensd_server.tiny_models import tiny_model, tiny_tokenizer

    fake.many = server = RewardServer()
    texts = ["Buy tea.", "Stop now."]
    prompts = [[{"role": "user", "content": text}] for text in texts] if conversational else texts
    dataset = Dataset.from_dict({"prompt": prompts, "reference": REFERENCES, "session": ["a", "b"]})
    reward = ShopR1Reward(fake.target)
    options = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=8,
        logging_steps=1,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        seed=1,
    )
    trainer = trl.GRPOTrainer(
        model=tiny_model("llama"),
        reward_funcs=reward,
        args=options,
        train_dataset=dataset,
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    reward.close()
    items = [item for start in server.starts for item in start["items"]]
    assert len(items) == 8
    assert {json.dumps(item["reference"], sort_keys=True) for item in items} == {
        '{"name": "buy", "type": "click"}',
        '{"type": "terminate"}',
    }
    assert all(("messages" in item) is conversational for item in items)
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    sent = [len(item["output"]) for item in items]
    for step, lengths in zip(steps, (sent[:4], sent[4:]), strict=True):
        assert step["rewards/shop_r1/mean"] == pytest.approx(sum(lengths) / 4)
        assert step["shop_r1/total"] == pytest.approx(sum(lengths) / 4)
