"""The type checker with which annotated shapes are checked while tests run."""

from beartype import BeartypeConf, FrozenDict, beartype

from lensd_api import Context, ModelCard, ModelHandle, ModelView, Norm, Write

#: Protocols say what to implement, not what a class is: at run time anything passes for one.
_PROTOCOLS = (Context, ModelCard, ModelHandle, ModelView, Norm, Write)

checked = beartype(conf=BeartypeConf(hint_overrides=FrozenDict(dict.fromkeys(_PROTOCOLS, object))))
