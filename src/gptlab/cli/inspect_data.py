"""`gptlab inspect` without a run or a step: what is in the data."""

import json
import typing

from gptlab.cli.options import compose, html_path, print_text
from gptlab.errors import UserError
from gptlab.generation.config import OutputFormat

if typing.TYPE_CHECKING:
    from gptlab.cli.inspect import Options

PAGE = "data.html"
PAGE_DOCUMENTS = 10


def show_data(own: "Options", overrides: list[str]) -> None:
    """Compose the data, and print what a sample of it shows."""
    page = None if own.html is None else html_path(own.html, PAGE)
    config = compose(overrides, "gptlab inspect")
    from gptlab.lab.data_look import look_at
    from gptlab.lab.data_page import as_text, write_data_page

    look = look_at(
        config.data,
        config.tokenizer,
        context_length=config.context_length,
        seed=config.seed,
        n_shown=max(own.n_shown, 0 if page is None else PAGE_DOCUMENTS),
        sample_bytes=int(own.sample_mb * 1e6),
    )
    if page is not None:
        try:
            write_data_page(look, page, title=f"{config.data_tag}: what is in the data")
        except OSError as error:
            raise UserError(f"html={page} cannot be written ({error.strerror or error})") from None
    if own.output is OutputFormat.json:
        print(json.dumps(look.plain() | ({} if page is None else {"page": str(page)})))
        return
    print_text(f"{as_text(look, own.n_shown)}\n")
    told = "html=FILE writes a page with charts and more documents" if page is None else f"page in {page}"
    print_text(f"\n{told}\n")
