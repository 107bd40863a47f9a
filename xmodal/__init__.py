"""Image sentiment learned from the crowd: posts → soft labels → shards → view → student → evaluation → report.

from xmodal import load_student
student = load_student("ViT_L16")
student(["beach.jpg", "storm.jpg"])
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from xmodal.evaluation.pipeline import StudentPipeline

__version__ = "0.1.0"


def load_student(name: str, *, device: "str | torch.device | None" = None) -> "StudentPipeline":
    """A student as a function of pictures, by its folder or by the name of one of the paper's models that was pulled.

    On the first GPU if there is one, unless `device` says otherwise. Raises UserError if `name` is no student.
    """
    from xmodal.evaluation.pipeline import StudentPipeline  # torch and timm, which not all of xmodal needs

    return StudentPipeline(name, device=device)
