"""A browser without a network shows the page: nothing is asked for, clipped or left blank."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import report_samples as samples
from PIL import Image

from sgl_sparsekv.report import report

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--host-resolver-rules=MAP * ~NOTFOUND", "--hide-scrollbars"),
)
WIDTHS = (1200, 400)
MEASURE = """
const page = frame.contentDocument, root = page.scrollingElement;
for (const one of page.querySelectorAll('details')) one.open = true;
const box = (one) => { const b = one.getBoundingClientRect(); return [b.width, b.height]; };
const spread = (one) => one.closest('.scroll') === null
  && one.getBoundingClientRect().right > root.clientWidth + 0.5;
document.title = JSON.stringify({
  width: root.clientWidth, scroll: root.scrollWidth, scripts: page.scripts.length,
  pictures: [...page.querySelectorAll('figure > svg')].map(box),
  empty: [...page.querySelectorAll('section')].filter(s => box(s)[1] < 40).map(s => s.id),
  wide: [...page.querySelectorAll('body *')].filter(spread).map(e => e.outerHTML.slice(0, 80)),
  clipped: [...page.querySelectorAll('figure > svg text')].filter(t => {
    const a = t.getBoundingClientRect(), b = t.ownerSVGElement.getBoundingClientRect();
    return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1
      || a.bottom > b.bottom + 1;
  }).map(t => t.textContent),
  images: [...page.querySelectorAll('image')].map(box),
});
"""


def chromium(folder: Path, *arguments: str) -> str:
    """What it prints."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    assert found, "Chromium must be installed for this test: apt-get install chromium"
    profile = folder / "profile"
    shutil.rmtree(profile, ignore_errors=True)
    command = [found, *FLAGS, f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    report(samples.everything(folder / "in"), folder / "r.html")
    return folder / "r.html"


def measured(page: Path, width: int) -> dict[str, Any]:
    """Boxes in a frame of that width: a window of the browser may be wider than asked for."""
    frame = (
        f'<iframe id="frame" style="border:0" width="{width}" height="900" srcdoc="{{}}"></iframe>'
    )
    script = f"<script>frame.onload = () => {{{MEASURE}}};</script>"
    outer = page.with_name("outer.html")
    outer.write_text(f"<!doctype html>{frame}{script}".replace("{}", escape(page.read_text()), 1))
    dom = chromium(page.parent, "--dump-dom", f"--window-size={width + 100},1000", outer.as_uri())
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title, dom[:500]
    found: dict[str, Any] = json.loads(unescape(title[1]))
    return found


def test_nothing_is_asked_for(page: Path) -> None:
    html = page.read_text()
    assert "<script" not in html and "<link" not in html and "@import" not in html
    loads = re.findall(r"""(?:src|href|srcset|action|data)\s*=\s*["']?([^"'\s>]+)""", html)
    assert loads and all(one.startswith(("#", "data:image/png;base64,")) for one in loads)
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in html


def test_links_lead_to_every_section(page: Path) -> None:
    html = page.read_text()
    places = set(re.findall(r'<section id="(s\d+)"', html))
    assert len(places) == 10 and set(re.findall(r'href="#(\w+)"', html)) == places


@pytest.mark.parametrize("width", WIDTHS)
def test_everything_has_room(page: Path, width: int) -> None:
    found = measured(page, width)
    assert found["width"] == width and found["scroll"] <= width, found["wide"][:5]
    assert not found["wide"] and not found["clipped"] and not found["empty"]
    assert len(found["pictures"]) > 40 and found["scripts"] == 0
    assert all(wide > 100 and high > 5 for wide, high in found["pictures"])
    assert found["images"] and all(min(box) > 0 for box in found["images"])


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_drawn(page: Path, width: int, scheme: str) -> None:
    shot = page.with_name(f"{width}-{scheme}.png")
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    chromium(
        page.parent, *dark, f"--screenshot={shot}", f"--window-size={width},6000", page.as_uri()
    )
    image = Image.open(shot).convert("RGB")
    assert image.size == (width, 6000)
    colours = sorted(image.getcolors(1 << 24) or [], reverse=True)
    assert len(colours) > 200
    assert max(colours[0][1]) < 60 if scheme == "dark" else min(colours[0][1]) > 240
    drawn = {colour for count, colour in colours if count > 20}
    for one in ((63, 127, 232), (217, 79, 112)):  # quest and streaming
        assert any(_near(one, other) for other in drawn)


def _near(a: Sequence[int], b: Sequence[int]) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) < 6
