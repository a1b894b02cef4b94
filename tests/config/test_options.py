"""An option is declared once: what its declaration alone brings about."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from functools import partial
from typing import Any

import pytest

from lora_a2.config.run import RunConfig, make_config
from lora_a2.core.options import Option
from lora_a2.data.config import ClientConfig, DataConfig
from lora_a2.errors import ConfigError
from lora_a2.federation.options import MethodOptions, PlanOptions, TrainingOptions, own_options
from lora_a2.flower.new_app import default_config
from lora_a2.flower.options import ServerOptions, sent_config
from lora_a2.methods import METHODS, get_method
from lora_a2.model.config import ModelConfig
from lora_a2.node.participant import taken_fields
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import Options, declaring, marks_of
from lora_a2.simulation import make_plan
from tiny import backbone, clients, model_of

GROUPS = (DataConfig, ClientConfig, ModelConfig, MethodOptions, TrainingOptions, PlanOptions)

NEW_METHOD_OPTION = """
    import json, sys
    from dataclasses import replace
    from lora_a2 import methods
    from lora_a2.core.options import Option

    SHARE = Option("kept_share", 0.5, "Share of the entries that is kept.", above=0, most=1)

    def flasc(kept_share=0.5):
        return replace(old, learning_rate_scale=kept_share, options=(SHARE,), variant=flasc)

    old = methods.METHODS["flasc"]
    methods.METHODS["flasc"] = flasc()

    from lora_a2.cli import main
    from lora_a2.config.run import dump_config, make_config
    from lora_a2.errors import ConfigError
    from lora_a2.flower.new_app import default_config
    from lora_a2.flower.options import read_options, sent_config
    from lora_a2.node.participant import taken_fields
    from lora_a2.studies.experiment import parse_experiment, points

    def refused(**values):
        try:
            make_config({}, values)
        except ConfigError as error:
            return str(error)

    config = make_config({"method": "flasc", "kept-share": "0.25"}, {})
    swept = parse_experiment('[arms.flasc]\\nmethod = "flasc"\\n[grid]\\nkept-share = [0.1, 0.2]', "published", "x")
    main(["run", "--help"])
    print("FOUND", json.dumps({
        "density": config.chosen_method().learning_rate_scale,
        "dumped": "kept-share = 0.25" in dump_config(config),
        "app": default_config()["kept-share"],
        "flower": read_options({"method": "flasc", "kept-share": 0.75})[0].chosen_method().learning_rate_scale,
        "sent": sent_config(config)["kept-share"],
        "taken": "kept_share" in taken_fields(),
        "swept": [point.config({}).chosen_method().learning_rate_scale for point in points(swept, {})],
        "other": refused(method="flora", kept_share=0.5),
        "bound": refused(method="flasc", kept_share=0),
    }))
"""


def test_an_option_in_a_method_s_file_shows_up_everywhere() -> None:
    """In a process of its own, where FLASC has one option more before anything else is imported."""
    code = textwrap.dedent(NEW_METHOD_OPTION)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    help_text, _, found = result.stdout.partition("FOUND ")
    assert "--kept-share X" in help_text
    assert "Share of the entries that is kept.  [default: 0.5]" in " ".join(help_text.split()).replace(". [", ".  [")
    assert json.loads(found) == {
        "density": 0.25,
        "dumped": True,
        "app": "",
        "flower": 0.75,
        "sent": 0.25,
        "taken": True,
        "swept": [0.1, 0.2],
        "other": "kept-share: flora has no such switch; use flasc.",
        "bound": "kept-share: 0 should be greater than 0.",
    }


@pytest.mark.parametrize("name", METHODS)
def test_an_option_of_other_methods_is_refused_and_they_are_named(name: str) -> None:
    own = {option.name for option in METHODS[name].options}
    for key in own_options():
        having = [m.name for m in METHODS.values() if key in {option.name for option in m.options}]
        default = next(option.default for m in METHODS.values() for option in m.options if option.name == key)
        if key in own:
            assert RunConfig(method=name, **{key: default}).chosen_method().name == name
            continue
        for refuse in (partial(RunConfig, method=name), partial(get_method, name)):
            with pytest.raises(ConfigError) as caught:
                refuse(**{key: default})
            assert str(caught.value) == f"{kebab(key)}: {name} has no such switch; use {', '.join(having)}."


WHOLE = Option("count", 3, "A number.", least=1, most=9)
PART = Option("share", 0.5, "A share.", above=0, most=1)
WORD = Option("kind", "a", "A word.", choices=("a", "b"))
SWITCH = Option("flag", True, "A switch.")


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        (WHOLE, [1, 9], [0, 10, True, 1.5, "3"]),
        (PART, [0.1, 1], [0, 1.1, float("nan"), False, "1"]),
        (WORD, ["a", "b"], ["c", 1, None]),
        (SWITCH, [True, False], [1, "on"]),
    ],
    ids=lambda value: value.name if isinstance(value, Option) else None,
)
def test_python_and_files_take_and_refuse_the_same(option: Option, good: list[Any], bad: list[Any]) -> None:
    @declaring([option], "Method")
    class Group(Options):
        """Nothing but the option."""

    for value in good:
        assert option.check(value) == value == getattr(Group(**{option.name: value}), option.name)
    for value in bad:
        with pytest.raises(ConfigError, match=f"^{option.key}: ") as caught:
            option.check(value)
        assert "\n" not in str(caught.value)
    assert getattr(Group(), option.name) is None


def test_two_methods_may_share_an_option_that_is_the_same() -> None:
    @declaring([WHOLE, WHOLE, PART], "Method")
    class Group(Options):
        """Two options."""

    assert list(Group.model_fields) == ["count", "share"]
    with pytest.raises(TypeError, match="different options called count"):
        declaring([WHOLE, Option("count", 4, "A number.")], "Method")
    with pytest.raises(TypeError, match="the name of another option"):
        declaring([Option("seed", 4, "A number.")], "Method")(TrainingOptions)


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_a_part_of_the_configuration_and_stands_alone(group: type[Options]) -> None:
    part = RunConfig().part(group)
    assert type(part) is group
    assert part == group()
    assert set(group.model_fields) <= set(RunConfig.model_fields)


def test_the_marks_say_who_is_told() -> None:
    fields = {**RunConfig.model_fields, **ServerOptions.model_fields}
    reach = {name: marks_of(field).reach for name, field in fields.items()}
    sent = {key.replace("-", "_") for key in sent_config(make_config({}, {"max_examples": 9, "output_dir": "x"}))}
    assert sent <= {name for name, to in reach.items() if to != "nobody"}
    assert {"max_examples", "model", *{"seed", "r"}} <= sent
    assert set(taken_fields()) == {name for name, to in reach.items() if to == "nodes"}
    without = set(RunConfig.model_fields) - {key.replace("-", "_") for key in default_config()}
    assert without == {name for name in RunConfig.model_fields if not marks_of(fields[name]).app}


# --- the plan of Python users


MODEL, MEMBERS = model_of(backbone("bert"), "bert"), clients([4, 6])


def test_a_plan_takes_options_as_the_command_line_spells_them() -> None:
    plan = make_plan(MODEL, MEMBERS, num_server_rounds=3, alternating=False, rank_budget=[1, 2], r=4, wire_dtype="fp16")
    assert (plan.num_server_rounds, plan.federation.initial.rank, plan.federation.wire_dtype) == (3, 4, "fp16")
    assert [p.rank_budget for p in plan.profiles] == [1, 2]
    assert plan.federation.method.travels == {"B"}
    assert make_plan(MODEL, MEMBERS, "fl-lora", r=4).profiles[0].rank == 4


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("lora-a2", {"learning_rte": 0.1}, "Unknown key 'learning-rte'; did you mean 'learning-rate'?"),
        ("lora-a2", {"data": "helpdesk"}, "Unknown key 'data'"),
        ("lora-a2", {"local_epochs": 0}, "local-epochs: 0 should be greater than or equal to 1."),
        ("lora-a2", {"rank_budget": [1, 2, 3]}, "the list has 3 numbers for 2 clients"),
        ("lora-a2", {"laplace_clipping_norm": 3.0}, "laplace-clipping-norm: it has no effect here"),
        ("lora-a3", {}, "Unknown method 'lora-a3'. Did you mean 'lora-a2'?"),
        ("fl-lora", {"criterion": "random"}, "criterion: fl-lora has no such switch; use lora-a2."),
        ("fl-lora", {"probe": "reuse"}, "probe: fl-lora selects no ranks"),
        ("fl-lora", {"rank_budget": [1, 2]}, "rank-budget: fl-lora needs the same for every client"),
        (METHODS["fl-lora"], {"rank_budget": [1, 2]}, "rank-budget: fl-lora needs the same for every client"),
        (METHODS["lora-a2"], {"criterion": "random"}, "criterion: the method is given as it is"),
    ],
)
def test_a_wrong_option_of_a_plan_is_one_line(method: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(MODEL, MEMBERS, method, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
