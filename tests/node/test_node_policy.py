"""A node's owner decides: every key of a policy, its file, and what a server cannot set."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_helpers import one_error
from federation import LABELS, save_data, save_model
from lora_a2 import codec
from lora_a2.cli import main
from lora_a2.commands import node as command
from lora_a2.config.run import RunConfig, make_config
from lora_a2.errors import ConfigError
from lora_a2.federation.client import upload_schema
from lora_a2.federation.options import own_options
from lora_a2.methods import METHODS
from lora_a2.node.participant import Participant, own_fields, taken_fields
from lora_a2.node.policy import Policy, load_policy
from lora_a2.node.refusals import Reason, Refused
from lora_a2.settings.errors import kebab
from lora_a2.settings.options import marks_of, option
from node_requests import Server, participant, request, run_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Data and a model."""
    folder = tmp_path_factory.mktemp("node")
    return str(save_data(folder / "mine.csv", 20)), str(save_model(folder / "model"))


Asked = tuple[str, dict[str, Any], dict[str, Any]]
"""Kind, options of the run, changes of the request."""

INSIDE_AND_OUTSIDE: dict[str, tuple[Any, Asked, Asked]] = {
    "methods": (["flora", "full"], ("train", {"method": "flora"}, {}), ("train", {"method": "lora-a2"}, {})),
    "labels": (list(reversed(LABELS)), ("profile", {}, {}), ("profile", {}, {"labels": (*LABELS, "more")})),
    "max-local-epochs": (3, ("train", {"local-epochs": 3}, {}), ("train", {"local-epochs": 4}, {})),
    "max-batch-size": (8, ("train", {"batch-size": 8}, {}), ("train", {"batch-size": 9}, {})),
    "max-rank": (5, ("train", {"r": 5}, {}), ("train", {"r": 6}, {})),
    "max-rounds": (7, ("train", {"num-server-rounds": 7}, {}), ("train", {"num-server-rounds": 8}, {})),
    "evaluation": (False, ("train", {}, {}), ("evaluate", {}, {})),
}
ELSEWHERE = {"max-seconds", "max-message", "round-examples-to", "model-fingerprints"}
"""Keys with their own tests: they need a clock, a socket, a count or a model."""


def ask(files: tuple[str, str], store: Path, key: str, value: Any, asked: Asked) -> Any:
    kind, options, changes = asked
    node = participant(*files, store, **{key: value})
    return node.answer(Server(files[1], **options).asks(kind, **changes))


@pytest.mark.parametrize("key", INSIDE_AND_OUTSIDE)
def test_what_is_inside_is_answered_and_what_is_outside_is_refused(
    key: str, files: tuple[str, str], tmp_path: Path
) -> None:
    value, inside, outside = INSIDE_AND_OUTSIDE[key]
    assert ask(files, tmp_path, key, value, inside).metrics
    with pytest.raises(Refused, match=f"the policy has {key} = ") as caught:
        ask(files, tmp_path, key, value, outside)
    assert caught.value.reason is Reason.POLICY
    assert "\n" not in str(caught.value)


def test_the_table_has_every_key() -> None:
    keys = set(map(kebab, Policy.model_fields))
    assert keys == set(INSIDE_AND_OUTSIDE) | ELSEWHERE


def test_a_round_beyond_those_announced_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    server = Server(files[1], **{"num-server-rounds": 5})
    for before, allowed in ((4, True), (5, False)):
        server.state = replace(server.state, server_round=before)
        node = participant(*files, tmp_path, max_rounds=5)
        if allowed:
            assert node.answer(server.asks("train")).payload
        else:
            with pytest.raises(Refused, match="max-rounds = 5"):
                node.answer(server.asks("train"))


@pytest.mark.parametrize("method", METHODS)
def test_the_defaults_let_every_method_through(method: str, files: tuple[str, str], tmp_path: Path) -> None:
    server = Server(files[1], method=method)
    assert participant(*files, tmp_path).answer(server.asks("train")).payload


def test_a_model_with_other_weights_is_refused(files: tuple[str, str], tmp_path: Path) -> None:
    asked = Server(files[1]).asks("profile")
    found = str(participant(*files, tmp_path).answer(asked).metrics["fingerprint"])
    assert participant(*files, tmp_path, model_fingerprints=["00ff", found]).answer(asked).metrics
    with pytest.raises(Refused, match=r"model-fingerprints = \['00ff'\]") as caught:
        participant(*files, tmp_path, model_fingerprints=["00ff"]).answer(asked)
    assert caught.value.reason is Reason.POLICY


def test_the_command_hands_the_largest_message_on(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    monkeypatch.setattr("lora_a2.node.worker.serve", lambda listener, answer, limit: limits.append(limit))
    (tmp_path / "node.toml").write_text("max-message = 3")
    start = ["node", "--data", files[0], "--socket", str(tmp_path / "private" / "s.sock")]
    assert main(start) == 0
    assert main([*start, "--policy", str(tmp_path / "node.toml")]) == 0
    assert limits == [4096 * 10**6, 3 * 10**6]


# --- numbers of examples


@given(examples=st.integers(0, 10**6), step=st.integers(1, 10**4))
def test_a_number_is_told_as_a_multiple_and_never_as_none(examples: int, step: int) -> None:
    told = Policy.model_validate({"round-examples-to": step}).stated(examples)
    assert told % step == 0
    assert abs(told - examples) <= (step / 2 if told > step else step)
    assert (told == 0) == (examples == 0)
    assert step > 1 or told == examples


@pytest.mark.parametrize("method", ["lora-a2", "full"])
def test_no_exact_number_leaves_a_node_that_rounds(method: str, files: tuple[str, str], tmp_path: Path) -> None:
    server = Server(files[1], method=method)
    node = participant(*files, tmp_path, round_examples_to=10)  # 16 to train on, 4 to test with
    found = node.answer(server.asks("profile")).metrics
    assert (found["num_examples"], found["num_test_examples"]) == (20, 10)
    sent = codec.decode_upload(
        node.answer(server.asks("train")).payload,
        upload_schema(server.federation),
        server.federation.initial.rank,
        server.federation.initial.lora_alpha,
    )
    assert sent.num_examples == 20
    exact = participant(*files, tmp_path).answer(server.asks("evaluate")).metrics
    rounded = node.answer(server.asks("evaluate")).metrics
    assert rounded["num_examples"] == 10
    assert rounded["num_correct"] == round(10 * float(exact["num_correct"]) / 4)


def test_a_node_that_answers_no_evaluation_states_no_test_examples(files: tuple[str, str], tmp_path: Path) -> None:
    node = participant(*files, tmp_path, evaluation=False)
    assert node.answer(request(run=run_of(files[1]))).metrics["num_test_examples"] == 0


# --- the file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max-rnk = 3", "Unknown key 'max-rnk'; did you mean 'max-rank'?"),
        ("max-rank = 0", "max-rank: 0 should be greater than or equal to 1."),
        ("max-rank = true", "max-rank: true is not a number."),
        ("max-seconds = 'long'", "max-seconds: 'long' should be a valid integer"),
        ("methods = 'flora'", "methods: 'flora' is a text; give a list such as ['flora']."),
        ("methods = ['flroa']", "methods: Unknown method 'flroa'."),
        ("evaluation = 1", "evaluation: 1 should be a valid boolean."),
        ("model-fingerprints = ['roberta-base']", "model-fingerprints: 'roberta-base' is not a fingerprint"),
        ("max-rank = ", "is not valid TOML"),
        ("max-rank = 1\nmax_rank = 2", "gives 'max-rank' twice"),
    ],
)
def test_a_wrong_file_is_one_line_and_nothing_starts(
    text: str, message: str, tmp_path: Path, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "node.toml").write_text(text)
    socket = tmp_path / "private" / "s.sock"
    assert main(["node", "--data", files[0], "--socket", str(socket), "--policy", str(tmp_path / "node.toml")]) == 2
    said = one_error(capsys)
    assert message in said
    assert "node.toml" in said
    assert not socket.parent.exists()


def test_keys_may_have_underscores_as_in_a_run_s_file(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text("max_rank = 3\nmethods = ['flora']\n")
    found = load_policy(tmp_path / "node.toml")
    assert (found.max_rank, found.methods) == (3, ("flora",))


def documented() -> list[str]:
    """The example of the help and of the documentation, line by line."""
    help_text = str(command.command.epilog).partition("node.toml, all of it optional:")[2]
    return [help_text, (ROOT / "docs" / "node-policy.md").read_text().split("```")[1]]


@pytest.mark.parametrize("text", documented(), ids=["help", "docs"])
def test_what_help_and_docs_show_is_a_policy_with_every_key_and_its_default(text: str) -> None:
    lines = [line.strip() for line in text.removeprefix("toml").splitlines() if line.strip()]
    shown = tomllib.loads("\n".join(lines))
    policy = Policy.model_validate(shown)
    assert list(shown) == list(map(kebab, Policy.model_fields))
    for line, (name, field) in zip(lines, Policy.model_fields.items(), strict=True):
        assert getattr(policy, name) != field.default, "an example that changes nothing shows nothing"
        default = "true" if field.default is True else str(field.default or "all")
        assert line.endswith(f"(default: {default})"), line


def test_the_unit_s_policy_is_one_and_lists_every_key_with_its_default() -> None:
    policy = load_policy(ROOT / "deploy" / "node.toml")
    assert policy == Policy.model_validate({})
    text = (ROOT / "deploy" / "node.toml").read_text()
    assert Policy.model_validate(tomllib.loads(text.replace("\n#: ", "\n"))) == policy
    assert re.findall(r"^#: ([a-z-]+) = ", text, re.MULTILINE) == list(map(kebab, Policy.model_fields))
    assert "--policy /etc/lora-a2/node.toml" in (ROOT / "deploy" / "worker.service").read_text()


# --- what a server cannot set


def test_what_a_run_says_of_machine_files_and_code_is_the_node_s_own(files: tuple[str, str], tmp_path: Path) -> None:
    node = Participant(lambda *arguments: None, tmp_path, own=own_fields(files[1], "cpu", None))  # type: ignore[arg-type,return-value]
    hostile = {
        **{
            "model": "/etc",
            "device": "cuda:7",
            "data": "/etc/passwd",
            "test-data": "/etc/shadow",
            "output-dir": "/srv",
        },
        **{
            "trust-remote-code": True,
            "report-to": ["wandb"],
            "num-workers": 99,
            "text-column": "x",
            "partitioner": "pathological",
        },
    }
    taken = node._config(replace(request(), run=hostile))
    expected = make_config({}, {"model": files[1], "device": "cpu", "num_clients": 3})
    assert taken == expected
    more = node._config(replace(request(), run={**hostile, "r": 3, "seed": 7, "dtype": "bfloat16"}))
    assert (more.r, more.seed, more.dtype) == (3, 7, "bfloat16")


def test_a_node_takes_from_a_server_what_training_needs_and_nothing_else() -> None:
    """A new option is the node's own unless its declaration says otherwise."""
    taken = set(taken_fields())
    assert {"method", "r", "local_epochs", "seed", "max_length", *own_options()} < taken < set(RunConfig.model_fields)
    assert {marks_of(RunConfig.model_fields[name]).group for name in taken} <= {"Model", "Method", "Training", "Task"}
    assert not taken & {"model", "device", "trust_remote_code", "data", "output_dir", "report_to", "num_workers"}
    assert marks_of(option(0, "Method", "New.")).reach != "nodes"


def test_own_fields_are_checked() -> None:
    assert own_fields("m", "cpu", None) == {"model": "m", "device": "cpu", "trust_remote_code": False}
    assert own_fields("m", "cpu", None, True)["trust_remote_code"] is True
    assert own_fields("m", "cpu", "bf16")["dtype"] == "bfloat16"
    with pytest.raises(ConfigError, match="dtype: 'int8' is not one of"):
        own_fields("m", "cpu", "int8")
