"""The verbs as functions, for notebooks and scripts; the command line calls the same.

One file a family, none of them named like a verb: `api.train` is the function. A verb imports torch when it is called,
so that `import inlay.api` is quick.
"""

from inlay.api.advice import advise
from inlay.api.chat import Loaded, load, sampling_of
from inlay.api.configs import config_of, explain_config, import_config, init, show_config
from inlay.api.data import check_data, data_stats, make_data, show_data, split_data, write_data_page
from inlay.api.demo_run import demo
from inlay.api.evaluation import compare, evaluate, harness, verify
from inlay.api.machine import doctor, plan
from inlay.api.run_checkpoints import checkpoint, checkpoints, clean_checkpoints, delete_checkpoint, pin
from inlay.api.training import compare_methods, cross_validate, resume, train
from inlay.api.types import ConfigLike, Confirm, RunLike, as_config

__all__ = [
    "ConfigLike",
    "Confirm",
    "Loaded",
    "RunLike",
    "advise",
    "as_config",
    "check_data",
    "checkpoint",
    "checkpoints",
    "clean_checkpoints",
    "compare",
    "compare_methods",
    "config_of",
    "cross_validate",
    "data_stats",
    "delete_checkpoint",
    "demo",
    "doctor",
    "evaluate",
    "explain_config",
    "harness",
    "import_config",
    "init",
    "load",
    "make_data",
    "pin",
    "plan",
    "resume",
    "sampling_of",
    "show_config",
    "show_data",
    "split_data",
    "train",
    "verify",
    "write_data_page",
]
