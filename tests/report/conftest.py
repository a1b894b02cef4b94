"""Runs, their page, and a browser that opens it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lora_a2.config.run import RunConfig, make_config
from lora_a2.federation.observer import Observer
from lora_a2.runs.jobs import launch
from pages import HOSTILE
from tiny import WORDS
from writers import writing_options

if TYPE_CHECKING:
    from lora_a2.report.inputs import Run

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on natural clients: one that selects ranks, twice with another seed, and full fine-tuning."""
    path = tmp_path_factory.mktemp("report")
    labels, users = (HOSTILE, "green & blue"), ("<b>ann</b>", "bob", "c'thy\"", "dan")
    for part, count in (("train", 48), ("test", 24)):
        rows = [
            {"text": " ".join(WORDS[(k + j) % 30] for j in range(4)), "label": labels[k // 4 % 2], "user": users[k % 4]}
            for k in range(count)
        ]
        (path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared: dict[str, Any] = {
        "data": str(path),
        "client_column": "user",
        "model": str(model_folder),
        "dtype": "float32",
        "num_server_rounds": 3,
        "local_epochs": 1,
        "batch_size": 4,
        "learning_rate": 5e-3,
        "r": 4,
    }
    for name, own in {
        "selecting": {"rank_budget": 1, "baselines": "local,centralised", "personalize": 1},
        "again": {"rank_budget": 1, "seed": 1},
        "full": {"method": "full"},
    }.items():
        launch(RunConfig(**shared, **own, output_dir=str(path / "runs" / name)), Observer())
    return path / "runs"


@pytest.fixture(scope="session")
def runs(folder: Path) -> list[Run]:
    from lora_a2.report.inputs import find_runs

    return find_runs([folder])[0]


@pytest.fixture(scope="session")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of all three."""
    from lora_a2.report.inputs import find_runs
    from lora_a2.report.render import render

    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(*find_runs([folder])), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a model that writes that differ in their seed, one with personal models, and full fine-tuning."""
    path = tmp_path_factory.mktemp("written")
    options = {**writing_options(path), "num_server_rounds": 3, "learning_rate": 5e-3}
    for name, own in {
        "one": {},
        "two": {"seed": 1},
        "own": {"method": "fedsa-lora"},
        "full": {"method": "full"},
    }.items():
        launch(make_config({}, {**options, **own, "output_dir": str(path / "runs" / name)}), Observer())
    return path / "runs"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as engine:
        running = engine.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, page: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in the browser, all runs unfolded; at its end nothing may have been said or asked for."""
    scheme, width = getattr(request, "param", ("light", 1200))
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 800})
    tab = context.new_page()
    said: list[str] = []
    tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    tab.on("pageerror", lambda error: said.append(f"error: {error}"))
    tab.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else said.append(asked.url))
    tab.goto(page.as_uri())
    tab.evaluate("document.querySelectorAll('details.run').forEach((part) => { part.open = true; })")
    tab.wait_for_function(
        "![...document.querySelectorAll('.chart')].some(c => !['done', 'failed'].includes(c.dataset.drawn))"
    )
    yield tab
    context.close()
    assert said == []
