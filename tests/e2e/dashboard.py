"""Screenshots of a finished run in MLflow, as a person sees it; see docs/dashboard.md.

    python -m pipelines train demo --storage.run demo
    python -m tests.e2e.dashboard runs/demo --out docs/dashboard

Needs Chromium (`--chromium PATH`), which is no Python package.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from pipelines.runtime.storage import Location
from pipelines.tracking.mlflow_client import TrackedRun
from tests.integration.mlflow_server import MlflowServer

#: Nothing that would call home, and no sandbox, which a container does not allow.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
SIZE = {"width": 1600, "height": 1000}
#: MLflow loads charts and pictures as they come into view.
SETTLE_MS = 8_000
COLOURS = 128


@contextmanager
def browser_page(chromium: str) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        page = browser.new_page(viewport=SIZE)
        page.set_default_timeout(120_000)
        yield page
        browser.close()


def visit(page: Page, url: str, sign: str) -> None:
    """Open a page of MLflow, and wait for what shows that it has loaded."""
    page.goto(url)
    page.get_by_text(re.compile(sign)).first.wait_for()
    page.wait_for_timeout(SETTLE_MS)


def tidy(page: Page, server: str) -> None:
    """Leave out what is not about training: the menu of applications, the assistant's pane."""
    visit(page, server, "Model training")
    page.get_by_text("Model training", exact=True).first.click()
    page.wait_for_timeout(SETTLE_MS // 4)
    pane = page.get_by_text("MLflow Assistant")
    if pane.count():
        pane.locator("xpath=ancestor::div[.//button][1]//button").last.click()


def shoot(page: Page, place: Path, *, height_px: int = SIZE["height"]) -> None:
    """Store what the window shows, or the upper part of it, in as few bytes as it takes."""
    page.screenshot(path=place, clip={"x": 0, "y": 0, "width": SIZE["width"], "height": height_px})
    Image.open(place).convert("RGB").quantize(COLOURS).save(place, optimize=True)
    print(place)


def shoot_run(page: Page, server: str, tracked: TrackedRun, model: str, out: Path) -> None:
    """The pages of a run that docs/dashboard.md speaks of."""
    num_pictures = len(MlflowClient(server).list_artifacts(tracked.run_id, "pictures"))
    run = f"{server}/#/experiments/{tracked.experiment_id}/runs/{tracked.run_id}"
    tidy(page, server)
    visit(page, f"{run}/model-metrics", "train")
    show_section(page, "train")
    shoot(page, out / "train.png")
    show_section(page, "embedding")
    # One picture for each evaluation, none at the start.
    show_newest(page, "/confusion$", num_pictures - 1)
    show_section(page, "embedding")
    shoot(page, out / "embedding.png")
    show_section(page, "batch")
    for name in ("pairs", "rendered_texts", "similarity"):
        show_newest(page, f"^batch/{name}$", num_pictures)
    shoot(page, out / "pictures.png")
    visit(page, f"{run}/system-metrics", "System metrics")
    show_section(page, "system/")
    shoot(page, out / "machines.png")
    visit(page, run, "Child runs")
    # Below stand the tags, with the paths of this machine.
    shoot(page, out / "overview.png", height_px=600)
    visit(page, f"{server}/#/models/{model}", "champion")
    shoot(page, out / "model.png")


def show_section(page: Page, name: str) -> None:
    """Scroll a section of charts to the top."""
    section = page.get_by_text(re.compile(f"^{name}")).first
    section.evaluate("section => section.scrollIntoView()")
    page.wait_for_timeout(SETTLE_MS)


def show_newest(page: Page, chart: str, num_pictures: int) -> None:
    """In a chart of pictures: the last step, and no params over the picture."""
    card = page.get_by_text(re.compile(chart)).first
    card = card.locator("xpath=ancestor::div[.//button[@aria-haspopup='menu']][1]")
    card.locator("button[aria-haspopup=menu]").first.click()
    page.get_by_role("menuitem", name="Configure").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("switch").first.click()
    dialog.get_by_role("slider").focus()
    # Beyond its end, MLflow's slider shows no picture.
    for _ in range(num_pictures - 1):
        page.keyboard.press("ArrowRight")
    dialog.get_by_role("button", name=re.compile("Save")).click()
    page.wait_for_timeout(SETTLE_MS // 2)


@contextmanager
def tracking_server(uri: str) -> Iterator[str]:
    """The server that a run was tracked by, or one on the file that it was tracked in."""
    if uri.startswith("http"):
        yield uri
        return
    with tempfile.TemporaryDirectory() as folder:
        server = MlflowServer(Path(folder), database=Path(uri.removeprefix("sqlite:///")))
        server.start()
        try:
            yield server.uri
        finally:
            server.kill()


def main() -> None:
    """Look at a run through the server that it is tracked by."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--out", type=Path, default=Path("docs/dashboard"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    tracked = TrackedRun(**(Location.of(arguments.run) / "mlflow.json").read_json())
    client = MlflowClient(tracked.uri, registry_uri=tracked.uri)
    (model, *_) = client.search_registered_models()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tracking_server(tracked.uri) as server, browser_page(arguments.chromium) as page:
        shoot_run(page, server, tracked, model.name, arguments.out)


if __name__ == "__main__":
    main()
