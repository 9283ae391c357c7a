"""How the figures look: one colour per method, sizes, and PNG files below 300 kB. And the pictures beside a log."""

import io
import json
import os
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

matplotlib.use("Agg")  # draws without a screen

MAX_FIGURE = 300_000  # bytes

# One colour per method, the same in every figure (Okabe and Ito: told apart by colour-blind readers too).
COLOURS = {
    "maid": "#0072B2",
    "maid, boxed": "#003F66",
    "quasi-newton": "#C1121F",
    "quasi-newton, boxed": "#7A0C14",
    "fixed 1e-1": "#B5B5B5",
    "fixed 1e-3": "#8A8A8A",
    "fixed 1e-4": "#737373",
    "fixed 1e-5": "#5C5C5C",
    "hoag geometric": "#009E73",
    "hoag quadratic": "#E69F00",
    "hoag cubic": "#CC79A7",
    "L-BFGS-B": "#111111",
    "L-BFGS-B, jaxopt": "#D55E00",
    "DFO-LS": "#882255",
    "Nelder-Mead": "#56B4E9",
    "Optuna TPE": "#AA6FD0",
    "scikit-learn grid": "#999933",
    "scalar search, scikit-image": "#A0522D",
    "scalar search, our solver": "#56B4E9",
    "GradientDescent": "#8A8A8A",
    "Nesterov": "#0072B2",
    "LBFGS": "#D55E00",
    "NewtonCG": "#009E73",
}
INK, BOUND, GOOD = "#222222", "#E69F00", "#009E73"


def use() -> None:
    """Set matplotlib's defaults."""
    plt.rcParams.update(
        {
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.titlesize": 10.5,
            "axes.labelsize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#777777",
            "axes.labelcolor": INK,
            "xtick.color": "#555555",
            "ytick.color": "#555555",
            "text.color": INK,
            "axes.grid": True,
            "grid.color": "#E6E6E6",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "image.cmap": "gray",
        }
    )


def save(figure: plt.Figure, path: str | os.PathLike) -> Path:
    """Write a PNG below 300 kB: 256 colours, and fewer dots per inch where that is not enough."""
    path, dpi = Path(path), plt.rcParams["savefig.dpi"]
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        raw, small = io.BytesIO(), io.BytesIO()
        figure.savefig(raw, dpi=dpi, format="png")
        image = Image.open(raw).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        image.save(small, format="PNG", optimize=True)
        if small.tell() < MAX_FIGURE:
            break
        dpi *= 0.9
    plt.close(figure)
    path.write_bytes(small.getvalue())
    return path


def save_pictures(path: str | os.PathLike, pictures: dict[str, np.ndarray]) -> None:
    """Pictures in [0, 1], (n, height, width) under each name, as one PNG of 8 bits, one below the other: smaller than
    compressed arrays by a tenth, and any viewer shows them."""
    sheets = [np.round(255 * np.clip(sheet, 0, 1)).astype(np.uint8) for sheet in pictures.values()]
    info = PngInfo()
    info.add_text("pictures", json.dumps({"names": list(pictures), "n": len(sheets[0])}))
    Image.fromarray(np.concatenate(np.concatenate(sheets))).save(path, pnginfo=info, optimize=True)


def load_pictures(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """What was saved, to 1/255; nothing where there is no file."""
    if not Path(path).exists():
        return {}
    with Image.open(path) as image:
        kinds, pixels = json.loads(image.text["pictures"]), np.asarray(image) / 255
    sheets = pixels.reshape(len(kinds["names"]), kinds["n"], -1, pixels.shape[1])
    return dict(zip(kinds["names"], sheets, strict=True))


def picture(axes: plt.Axes, image: np.ndarray, title: str) -> None:
    """A grey image in [0, 1] without axes."""
    axes.imshow(image, vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title)
    axes.set_axis_off()
