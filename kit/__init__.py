"""GR-PSPO kit: train LoRA adapters on a 4-bit base with smoothed or clipped trust regions.

`__all__` is the API, which docs/api.md explains; all else in the kit may change. `import kit` loads
none of it: what a name needs, torch among it, is imported when the name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.api import evaluate, load_policy, sample
    from kit.comparison import compare
    from kit.errors import KitError
    from kit.recipe import load_config
    from kit.reports import report
    from kit.training.trainer import train

__version__ = "0.1.0"

__all__ = [
    "KitError",
    "__version__",
    "compare",
    "evaluate",
    "load_config",
    "load_policy",
    "report",
    "sample",
    "train",
]

_MODULES = {
    "KitError": "kit.errors",
    "compare": "kit.comparison",
    "evaluate": "kit.api",
    "load_config": "kit.recipe",
    "load_policy": "kit.api",
    "report": "kit.reports",
    "sample": "kit.api",
    "train": "kit.training.trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kit' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
