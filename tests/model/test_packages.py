"""Models out of packages: found, checked, converted once, and never left half."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_a2.cli import main
from lora_a2.data.finding import find_tables
from lora_a2.errors import ModelError
from lora_a2.model import packages
from lora_a2.model.backbone import find_source, load_backbone
from lora_a2.model.causal import load_language_model
from lora_a2.model.conversion import from_parts
from lora_a2.model.names import BUILT_IN
from lora_a2.model.packages import PACKAGED, Packaged, packaged_folder

PARTS = (b"first ", b"second ", b"third")
NAME = "SmolLM2-135M-Instruct"
"""The name under which a toy lies here: the catalog knows it."""


def copied(files: Sequence[Path], out: Path) -> None:
    """A conversion: the parts in a file, and a folder in the folder."""
    (out / "whole").write_bytes(b"".join(path.read_bytes() for path in files))
    (out / "inner").mkdir()
    (out / "inner" / "note").write_text("a note")


TOY = Packaged(
    files=tuple((f"toy-model-part-{i}", f"input/toy.{i}") for i in range(3)),
    sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
    install="pip install toy-model",
    convert=copied,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lora-a2" / "models"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the toy's packages are installed. Importing one fails."""
    site = tmp_path / "site"
    for (module, inside), data in zip(TOY.files, PARTS, strict=True):
        (site / module / "input").mkdir(parents=True)
        (site / module / "__init__.py").write_text("raise AssertionError('imported')")
        (site / module / inside).write_bytes(data)
    monkeypatch.syspath_prepend(str(site))
    return site


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch) -> Callable[[Packaged], None]:
    return lambda model: monkeypatch.setitem(packages.PACKAGED, NAME, model)  # type: ignore[arg-type]


def refused(match: str) -> str:
    with pytest.raises(ModelError, match=match) as caught:
        packaged_folder(NAME)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_is_in_the_catalog_and_says_how_it_is_installed() -> None:
    assert set(PACKAGED) <= set(BUILT_IN) and len(PACKAGED) == 3
    for model in PACKAGED.values():
        assert model.install.startswith("pip install ") and len(model.sha256) == 64


def test_other_models_are_in_no_package(tmp_path: Path) -> None:
    for name in ("gpt2", "meta-llama/Llama-3.2-1B", str(tmp_path)):
        assert packaged_folder(name) is None


def test_a_missing_package_is_named_unless_the_hub_has_the_same(cache: Path, put: Callable[[Packaged], None]) -> None:
    put(TOY)
    said = refused("packages that are not installed: pip install toy-model$")
    assert NAME in said and not cache.exists()
    put(replace(TOY, hub_id="someone/toy"))
    refused("not installed")
    assert packaged_folder("someone/toy") is None
    put(replace(TOY, hub_id="someone/toy", or_hub=True))
    assert packaged_folder(NAME) is None


def test_one_of_several_packages_is_missing(site: Path, cache: Path, put: Callable[[Packaged], None]) -> None:
    put(replace(TOY, files=(*TOY.files, ("toy-model-part-3", "x"))))
    refused("not installed")
    put(replace(TOY, files=(*TOY.files[:2], (TOY.files[2][0], "input/none"))))
    refused("input/none is missing.*pip install --force-reinstall toy-model$")
    assert not cache.exists()


def test_a_folder_in_a_package_is_used_where_it_is(site: Path, cache: Path, put: Callable[[Packaged], None]) -> None:
    one = replace(TOY, files=TOY.files[:1], sha256=hashlib.sha256(PARTS[0]).hexdigest(), convert=None)
    put(one)
    assert packaged_folder(NAME) == site / "toy-model-part-0" / "input"
    put(replace(one, sha256="0" * 64))
    refused(f"toy.0 has sha256 {one.sha256}; expected 0{{64}}")
    assert not cache.exists()


def test_it_is_converted_once_and_needs_its_packages_no_more(
    site: Path, cache: Path, put: Callable[[Packaged], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    put(replace(TOY, convert=lambda files, out: (calls.append(out), copied(files, out))[1]))
    folder = packaged_folder(NAME)
    assert folder == cache / f"{NAME}-{TOY.sha256[:12]}"
    assert (folder / "whole").read_bytes() == b"first second third"
    assert calls == [cache / f".{folder.name}.partial"] and not calls[0].exists()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    put(TOY)
    assert packaged_folder(NAME) == folder


def test_the_wrong_parts_are_not_converted(site: Path, cache: Path, put: Callable[[Packaged], None]) -> None:
    put(replace(TOY, files=TOY.files[::-1]))
    refused("has sha256")
    assert [path.name for path in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("error", [ModelError("no good"), OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_fails_leaves_nothing(
    error: BaseException, site: Path, cache: Path, put: Callable[[Packaged], None]
) -> None:
    def half(files: Sequence[Path], out: Path) -> None:
        copied(files, out)
        raise error

    put(replace(TOY, convert=half))
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else ModelError) as caught:
        packaged_folder(NAME)
    assert "\n" not in str(caught.value)
    assert [path.name for path in cache.iterdir()] == [".lock"]


def test_a_kill_leaves_nothing_that_is_taken_for_whole(
    site: Path, cache: Path, put: Callable[[Packaged], None]
) -> None:
    def killed(files: Sequence[Path], out: Path) -> None:
        (out / "stale").write_text("half of it")
        os._exit(9)

    put(replace(TOY, convert=killed))
    child = os.fork()
    if child == 0:
        try:
            packaged_folder(NAME)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert [path.name for path in cache.glob("*/stale")] == ["stale"]
    put(TOY)
    folder = packaged_folder(NAME)
    assert folder is not None and sorted(p.name for p in folder.iterdir()) == ["SHA256SUMS", "inner", "whole"]
    assert sorted(path.name for path in cache.iterdir()) == [".lock", folder.name]


def test_several_at_once_convert_once(site: Path, cache: Path, put: Callable[[Packaged], None]) -> None:
    calls = []

    def slow(files: Sequence[Path], out: Path) -> None:
        calls.append(out)
        time.sleep(0.05)
        copied(files, out)

    put(replace(TOY, convert=slow))
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(packaged_folder, [NAME] * 4))
    assert len(set(folders)) == 1 and len(calls) == 1


@pytest.mark.parametrize("file", ["whole", "inner/note", "SHA256SUMS"])
@pytest.mark.parametrize("gone", [False, True])
def test_what_was_changed_in_the_cache_is_refused(
    file: str, gone: bool, site: Path, cache: Path, put: Callable[[Packaged], None]
) -> None:
    put(TOY)
    folder = packaged_folder(NAME)
    assert folder is not None
    if gone:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(b"other")
    said = refused(f"Remove {folder}; it is then made again from its package")
    assert file in said


@pytest.mark.parametrize("stated", ["", "relative/cache"])
def test_without_an_absolute_xdg_cache_home_it_is_in_the_home_folder(
    stated: str, site: Path, put: Callable[[Packaged], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", stated)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    put(TOY)
    folder = packaged_folder(NAME)
    assert folder is not None and folder.parent == tmp_path / "home" / ".cache" / "lora-a2" / "models"


def test_a_cache_that_cannot_be_written_is_named(
    site: Path, put: Callable[[Packaged], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    put(TOY)
    refused(r"cannot be converted into .*Set XDG_CACHE_HOME")


def test_what_reads_the_file_is_asked_for(site: Path, cache: Path, put: Callable[[Packaged], None]) -> None:
    put(replace(TOY, reader="no_such_module"))
    refused("needs no_such_module to be read: pip install toy-model")


def test_a_model_is_called_what_it_can_be_loaded_by_again(
    site: Path, cache: Path, put: Callable[[Packaged], None]
) -> None:
    put(TOY)
    folder = str(packaged_folder(NAME))
    source = find_source(NAME)
    assert (source.where, source.name, source.config.hidden_size) == (folder, folder, 576)
    put(replace(TOY, hub_id="HuggingFaceTB/SmolLM2-135M-Instruct"))
    for name in (NAME, "HuggingFaceTB/SmolLM2-135M-Instruct"):
        source = find_source(name)
        assert (source.where, source.name) == (folder, "HuggingFaceTB/SmolLM2-135M-Instruct")


def zipped(names: Sequence[str]) -> bytes:
    with io.BytesIO() as file:
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, name)
        return file.getvalue()


def parts(folder: Path, data: bytes, size: int) -> list[Path]:
    paths = [folder / f"part.{i:03d}" for i in range(-(-len(data) // size))]
    for i, path in enumerate(paths):
        path.write_bytes(data[i * size : (i + 1) * size])
    return paths


@pytest.mark.parametrize("size", [7, 100, 1 << 20])
def test_parts_of_a_zip_file(size: int, tmp_path: Path) -> None:
    names = [
        "m/config.json",
        "m/1_Pooling/config.json",
        "m/model.safetensors",
        "m/vocab.txt",
        "m/desktop.ini",
        "m/README.md",
    ]
    out = tmp_path / "out"
    out.mkdir()
    from_parts(parts(tmp_path, zipped(names), size), out)
    found = {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
    assert found == {name.removeprefix("m/"): name for name in names[:4]}


def test_parts_that_are_no_zip_file_or_lead_out_of_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for data in (b"nothing", zipped(["m/config.json"])[:-30], zipped(["m/../../x.json"])):
        with pytest.raises(ModelError, match=r"part\.000 and its other parts are no zip file"):
            from_parts(parts(tmp_path, data, 50), out)
    assert not list(tmp_path.rglob("*.json"))


@pytest.fixture(scope="module")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def require(name: str) -> None:
    model = PACKAGED[name]
    needed = [module for module, _ in model.files] + ([model.reader] if model.reader else [])
    if any(importlib.util.find_spec(module) is None for module in needed):
        pytest.skip(f"{name} is not installed: {model.install}")


@pytest.mark.slow
def test_the_real_smollm2(real_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    require(NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(real_cache))
    folder = packaged_folder(NAME)
    out, err = capfd.readouterr()
    assert folder is not None and out + err == ""
    (module, file), model = PACKAGED[NAME].files[0], AutoModelForCausalLM.from_pretrained(folder)
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    original = AutoTokenizer.from_pretrained(Path(spec.origin).parent, gguf_file=file)
    assert tokenizer.chat_template == original.chat_template and "<|im_start|>assistant" in tokenizer.chat_template
    texts = [f"{p}\n{c} 3.15 € naïve <|im_end|>" for p, c in prompts_and_completions()]
    assert [tokenizer(text).input_ids for text in texts] == [original(text).input_ids for text in texts]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.bos_token_id) == (2, 2, 1)
    ends = model.generation_config
    assert (ends.eos_token_id, ends.pad_token_id, ends.bos_token_id) == (2, 2, 1)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    told = model.generate(asked.input_ids, attention_mask=asked.attention_mask, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(told[0, asked.input_ids.shape[1] :])
    loaded = load_language_model(NAME)
    assert loaded.backbone.name == str(folder)
    assert load_language_model(str(folder)).backbone.fingerprint == loaded.backbone.fingerprint


def prompts_and_completions() -> list[tuple[str, str]]:
    found = find_tables("shopdesk")
    assert found.test is not None
    return [
        pair
        for table in (found.train, found.test)
        for pair in zip(table.column("prompt"), table.column("completion"), strict=True)
    ]


@pytest.mark.slow
def test_the_shop_s_examples_are_at_most_60_tokens(real_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(real_cache))
    tokenizer = AutoTokenizer.from_pretrained(packaged_folder(NAME))
    assert max(len(tokenizer(f"{p}\n{c}").input_ids) for p, c in prompts_and_completions()) <= 60


@pytest.mark.slow
def test_the_real_mpnet(
    real_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    require("mpnet-base")
    monkeypatch.setenv("XDG_CACHE_HOME", str(real_cache))
    loaded = load_backbone("mpnet-base")
    out, err = capfd.readouterr()
    assert out + err == ""
    assert (loaded.name, loaded.pooling) == ("sentence-transformers/all-mpnet-base-v2", "mean")
    assert load_backbone(loaded.name).fingerprint == loaded.fingerprint
    folder = packaged_folder("mpnet-base")
    assert folder is not None
    with (folder / "model.safetensors").open("rb") as file:
        official = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
        assert hashlib.file_digest(file, "sha256").hexdigest() == official
    argv = ["run", "--model", "mpnet-base", "--max-examples", "60", "--num-clients", "2", "--num-server-rounds", "1"]
    assert main([*argv, "--output-dir", str(tmp_path / "run"), "--quiet"]) == 0
