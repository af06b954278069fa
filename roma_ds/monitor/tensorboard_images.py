"""The report's pictures as TensorBoard images, beside the scalars that DeepSpeed writes."""

from __future__ import annotations

from pathlib import Path

from roma_ds.errors import UserError
from roma_ds.monitor.figures import draw_all
from roma_ds.monitor.run_folder import read_run
from roma_ds.storage.atomic import read_json

SUFFIX = ".pictures"


def add_images(run_dir: Path) -> int:
    """Write report/*.png (drawn when there is none) into train/tensorboard, tagged report/NAME.

    Images of an earlier call are replaced. Returns how many were written: 0 when the DeepSpeed JSON turns
    TensorBoard off. Raises UserError when `run_dir` is no folder.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is no folder", "give the output_dir of a run")
    resolved = run_dir / "ds_config.resolved.json"
    if resolved.exists() and not read_json(resolved).get("tensorboard", {}).get("enabled", True):
        return 0
    report = run_dir / "report"
    files = sorted(report.glob("*.png"))
    if not files:
        pictures, _ = draw_all(read_run(run_dir), report)
        files = [picture.path for picture in pictures.values()]
    if not files:
        return 0
    import numpy as np
    from matplotlib.image import imread
    from torch.utils.tensorboard import SummaryWriter

    folder = run_dir / "train" / "tensorboard"
    for old in folder.glob(f"*tfevents*{SUFFIX}"):
        old.unlink()
    writer = SummaryWriter(str(folder), filename_suffix=SUFFIX)
    for file in files:
        pixels = np.asarray(imread(file), dtype=np.float32)[:, :, :3]
        writer.add_image(f"report/{file.stem}", (255 * pixels).astype(np.uint8), 0, dataformats="HWC")
    writer.close()
    return len(files)
