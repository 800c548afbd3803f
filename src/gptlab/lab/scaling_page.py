"""A scaling law as one self-contained HTML page: the table of the command and the picture."""

import tempfile
from pathlib import Path

from gptlab.lab.html import document, escape, write_document
from gptlab.lab.scaling_law import IsoFlops, ScalingLaw
from gptlab.lab.scaling_plot import draw


def write_page(law: ScalingLaw, iso: IsoFlops, text: str, path: Path, *, title: str) -> None:
    """Write the page, atomically; `text` is what the command prints."""
    import base64

    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "scaling.png"
        draw(law, iso, picture, title=title)
        data = base64.b64encode(picture.read_bytes()).decode()
    body = (
        f"<main><h1>{escape(title)}</h1><pre>{escape(text)}</pre>"
        f'<img alt="the law, its residuals, isoFLOP profiles and the frontier" style="max-width:100%" '
        f'src="data:image/png;base64,{data}"></main>'
    )
    write_document(path, document(f"scaling law: {title}", body, charts=False))
