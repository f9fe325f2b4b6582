"""The page: its tabs put together, the API, and starting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from kit.app import inert, parts
from kit.app.api import Api
from kit.app.browse import view as browse_view
from kit.app.compare import ratios, reader
from kit.app.compare.view import CompareView
from kit.app.compare.wiring import MODEL, Wiring
from kit.app.doors import PER_ADDRESS, WINDOW, Doors
from kit.app.library.adapters import find
from kit.app.options import AppOptions
from kit.app.pair_view import PairView
from kit.app.parts import QUIET
from kit.app.report import view as report_view
from kit.app.session import Session
from kit.app.training import view as training_view
from kit.errors import ModelError

STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
# of weight 600, which Gradio would load, its file has two letters
SANS: Any = gr.themes.LocalFont("Source Sans Pro", weights=(400, 700))
# Gradio's own greys are too pale to read for many people (WCAG 2, 4.5 to 1)
THEME = gr.themes.Default(primary_hue="blue", text_size="md", font=(SANS, "sans-serif")).set(
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_label_text_color="*neutral_700",
    block_label_text_color_dark="*neutral_200",
    block_title_text_color="*neutral_700",
    block_title_text_color_dark="*neutral_200",
    input_placeholder_color="*neutral_600",
    input_placeholder_color_dark="*neutral_300",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_cancel_background_fill="#b42318",
    button_cancel_background_fill_dark="#b42318",
)
COMPARE, BROWSE, TRAINING, REPORT = "compare", "browse", "training", "report"


def build(desk: Session) -> gr.Blocks:
    """The whole page on a desk; start it with `launch`."""
    with gr.Blocks(title="GR-PSPO kit", fill_width=True, delete_cache=(3600, 86_400)) as page:
        # before the tabs: whoever comes first has the name
        gr.api(Api(desk).compare, api_name="compare", concurrency_id=MODEL, concurrency_limit=1)
        pair = PairView(desk)
        with gr.Tabs(elem_id="kit-tabs") as tabs:
            with gr.Tab("Compare", id=COMPARE, elem_id="kit-compare"):
                compare = CompareView(desk, pair)
                events = Wiring(compare)
            with gr.Tab("Browse", id=BROWSE) as browse_tab:
                browse = browse_view.build(desk.options, pair, compare.reading)
                browse.refresh_on(browse_tab.select)
            with gr.Tab("Training", id=TRAINING):
                training_view.build(desk.options)
            with gr.Tab("Report", id=REPORT):
                report_view.build(desk.options)
        for picked in browse.picked:
            events.read_after(picked).then(lambda: gr.update(selected=COMPARE), None, tabs, **QUIET)
    return page


def launch(options: AppOptions) -> None:
    """Start the app and serve until it is stopped."""
    desk = Session(options, find(options))
    page = build(desk)
    # colours would be spelled out as any other control
    uvicorn.config.LOGGING_CONFIG["formatters"]["default"]["use_colors"] = False
    try:
        page.launch(
            **settings(options), app_kwargs=guard(options), prevent_thread_lock=True, quiet=True
        )
    except OSError as error:
        raise ModelError(
            f"the app cannot listen on {options.host}:{options.port}, where another program may "
            "listen already; choose another --port"
        ) from error
    print(f"The app is at {page.local_url}", flush=True)
    if page.share_url:
        print(f"and for others at {page.share_url}", flush=True)
    desk.load()  # once the page is up: importing what runs a model takes longer than the page
    page.block_thread()


def settings(options: AppOptions) -> dict[str, Any]:
    """Arguments of Gradio's `launch`."""
    styles = (parts.STYLE, inert.STYLE, reader.STYLE, ratios.STYLE, STYLE)
    return {
        "server_name": options.host,
        "server_port": options.port,
        "share": options.share,
        "auth": options.auth,
        # a page that is told to wait would else say nothing at all
        "auth_message": f"After {PER_ADDRESS} wrong passwords the login is closed for "
        f"{WINDOW / 60:g} minutes.",
        "css": "\n".join(styles),
        "theme": THEME,
        "footer_links": ["api", "settings"],
        "show_error": False,
        "enable_monitoring": False,
    }


def guard(options: AppOptions, *, any_name: bool = False) -> dict[str, Any]:
    """Arguments of the web application that close what the page does not use and keep pages of
    other sites out.

    Whoever owns a name can have it lead to this computer, and a page of theirs that is open in a
    browser here is then let in like ours (DNS rebinding). So without a password only names of this
    computer are answered. With one the name is free, as behind a proxy; so it is in a notebook,
    whose proxies hand on names of their own (`any_name`).
    """
    doors = [Middleware(Doors)]
    if options.auth is None and not any_name:
        names = ["localhost", "127.0.0.1", options.host]
        doors.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=names))
    return {"middleware": doors}
