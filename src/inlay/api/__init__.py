"""The verbs as functions, for notebooks and scripts; the command line calls the same.

One file a family, none of them named like a verb: `api.train` is the function. A family is imported when one of its names
is first used, and with it torch, if its verbs compute.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inlay.adapters.names import as_config
    from inlay.api.adapter_difference import diff_adapters
    from inlay.api.adapter_ranks import rank_adapter, shrink_adapter
    from inlay.api.adapters import (
        add_adapter,
        check_adapters,
        compose_adapters,
        export_adapter,
        list_adapters,
        merge_adapters,
        removable_adapter,
        remove_adapter,
        show_adapter,
        tag_adapter,
        untag_adapter,
    )
    from inlay.api.advice import advise
    from inlay.api.alias_tests import show_tests, start_test, stop_test
    from inlay.api.chat import Loaded, load
    from inlay.api.configs import (
        advise_settings,
        config_of,
        explain_config,
        import_config,
        init,
        sampling_of,
        show_config,
    )
    from inlay.api.data import check_data, data_stats, make_data, split_data, write_data_page
    from inlay.api.data_with_base import show_data
    from inlay.api.demo_run import demo
    from inlay.api.evaluation import compare, evaluate, harness, verify
    from inlay.api.load_tests import bench_serve
    from inlay.api.machine import doctor, plan
    from inlay.api.routing import RouterRefused, fit_router
    from inlay.api.run_checkpoints import checkpoint, checkpoints, clean_checkpoints, delete_checkpoint, pin
    from inlay.api.server import make_token, serve
    from inlay.api.serving import Host
    from inlay.api.sweeping import sweep, sweep_settings
    from inlay.api.training import compare_methods, cross_validate, resume, train
    from inlay.config.load import ConfigLike
    from inlay.runs.folder import RunLike
    from inlay.workflows.resume import Confirm
    from inlay.workflows.sweep.space import over_of

_FAMILIES = {
    "adapter_difference": "diff_adapters",
    "adapter_ranks": "rank_adapter shrink_adapter",
    "adapters": "removable_adapter add_adapter check_adapters compose_adapters export_adapter list_adapters merge_adapters remove_adapter show_adapter tag_adapter untag_adapter",
    "advice": "advise",
    "alias_tests": "show_tests start_test stop_test",
    "chat": "Loaded load",
    "configs": "advise_settings config_of explain_config import_config init sampling_of show_config",
    "data": "check_data data_stats make_data split_data write_data_page",
    "data_with_base": "show_data",
    "demo_run": "demo",
    "evaluation": "compare evaluate harness verify",
    "load_tests": "bench_serve",
    "machine": "doctor plan",
    "routing": "RouterRefused fit_router",
    "serving": "Host",
    "run_checkpoints": "checkpoint checkpoints clean_checkpoints delete_checkpoint pin",
    "server": "make_token serve",
    "sweeping": "sweep sweep_settings",
    "training": "compare_methods cross_validate resume train",
}
"""File -> its public names."""
_HOME = {
    "ConfigLike": "inlay.config.load", "Confirm": "inlay.workflows.resume", "RunLike": "inlay.runs.folder",
    "as_config": "inlay.adapters.names", "over_of": "inlay.workflows.sweep.space",
}  # fmt: skip
"""Home of the names that lie elsewhere."""
__all__ = [
    "ConfigLike",
    "Confirm",
    "Host",
    "Loaded",
    "RouterRefused",
    "RunLike",
    "add_adapter",
    "advise",
    "advise_settings",
    "as_config",
    "bench_serve",
    "check_adapters",
    "check_data",
    "checkpoint",
    "checkpoints",
    "clean_checkpoints",
    "compare",
    "compare_methods",
    "compose_adapters",
    "config_of",
    "cross_validate",
    "data_stats",
    "delete_checkpoint",
    "demo",
    "diff_adapters",
    "doctor",
    "evaluate",
    "explain_config",
    "export_adapter",
    "fit_router",
    "harness",
    "import_config",
    "init",
    "list_adapters",
    "load",
    "make_data",
    "make_token",
    "merge_adapters",
    "over_of",
    "pin",
    "plan",
    "rank_adapter",
    "removable_adapter",
    "remove_adapter",
    "resume",
    "sampling_of",
    "serve",
    "show_adapter",
    "show_config",
    "show_data",
    "show_tests",
    "shrink_adapter",
    "split_data",
    "start_test",
    "stop_test",
    "sweep",
    "sweep_settings",
    "tag_adapter",
    "train",
    "untag_adapter",
    "verify",
    "write_data_page",
]


def __getattr__(name: str) -> Any:
    homes = _HOME | {each: f"inlay.api.{family}" for family, names in _FAMILIES.items() for each in names.split()}
    if name not in homes:
        raise AttributeError(f"module 'inlay.api' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(homes[name]), name)
    return value


def __dir__() -> list[str]:
    return [*__all__]
