"""What two ranks make, with all that a recipe may ask for, held against a plain loop in one process."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launchers import launch, settings, steps, train_in_turn

from shards.augment import AugmentConfig
from shards.batches import Normaliser
from shards.stream import EvalStream, StreamConfig, TrainStream
from shards.view import open_view, target_array
from xmodal.students import StudentConfig, create_student, input_spec, load_student
from xmodal.training.metrics_file import read_metrics

# Without biases of the keys: their gradients are zero but for rounding, which Adam would blow up.
MODEL_ARGS = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "qkv_bias": False,
}  # fmt: skip
STUDENT = StudentConfig(model="vit_tiny_patch16_224", pretrained=False, head="mlp", model_args=MODEL_ARGS)
RATE, LAYER_DECAY, DECAY, EMA, SMOOTHING, MAX_NORM, FINAL = 2e-3, 0.7, 0.1, 0.8, 0.2, 0.5, 0.1
RECIPE = (
    "--student.head=mlp", f"--student.model_args={json.dumps(MODEL_ARGS)}", "--epochs=3", "--frozen_epochs=1",
    "--optimizer.kind=radam", f"--optimizer.lr={RATE}", f"--optimizer.layer_decay={LAYER_DECAY}",
    f"--optimizer.weight_decay={DECAY}", f"--optimizer.ema_decay={EMA}", f"--optimizer.max_grad_norm={MAX_NORM}",
    "--optimizer.warmup_share=0.2", f"--optimizer.final_lr_share={FINAL}", "--loss.kind=hard",
    f"--loss.label_smoothing={SMOOTHING}", "--loss.class_weights=balanced",
)  # fmt: skip


def float32_config(folder: Path, stage: int) -> str:
    """DeepSpeed's config of a ZeRO stage, with float32 throughout."""
    config = json.loads(Path(f"configs/deepspeed/zero{stage}.json").read_text())
    del config["bf16"], config["data_types"]
    path = folder / f"zero{stage}.json"
    path.write_text(json.dumps(config))
    return str(path)


def schedule(step: int, num_steps: int) -> float:
    """Warm-up over a fifth, then half a cosine."""
    warmup = round(0.2 * num_steps)
    if step < warmup:
        return RATE * (step + 1) / warmup
    half_turn = torch.pi * (step - warmup) / (num_steps - 1 - warmup)
    return RATE * (FINAL + (1 - FINAL) * (1 + torch.cos(torch.tensor(half_turn)).item()) / 2)


def layer_of(name: str) -> int:
    if name.startswith("head."):
        return 3
    if name.startswith("norm."):
        return 2
    return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0


def new_optimizer(model: torch.nn.Module, *, head_only: bool) -> torch.optim.Optimizer:
    groups = [
        {
            "params": [parameter],
            "share": LAYER_DECAY ** (3 - layer_of(name)),
            "weight_decay": DECAY if parameter.ndim > 1 and name not in ("cls_token", "pos_embed") else 0.0,
        }
        for name, parameter in model.named_parameters()
        if name.startswith("head.") or not head_only
    ]
    return torch.optim.RAdam(groups, decoupled_weight_decay=True)


@pytest.fixture(scope="module")
def reference(small_view: Path) -> dict[str, Any]:
    """The losses and the moving average of a plain loop."""
    view = open_view(str(small_view))
    stream = TrainStream(
        view, config=StreamConfig(num_lanes=8, num_workers=0), size=32, augment=AugmentConfig(), global_batch_size=16
    )
    torch.manual_seed(0)
    model = create_student(STUDENT)
    spec = input_spec(model)
    labels = torch.from_numpy(target_array(view.split("train").rows)).argmax(dim=1)
    class_weights = len(labels) / (3 * labels.bincount(minlength=3))
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    losses, count = [], 0
    for first, epochs in ((True, 1), (False, 2)):
        optimizer = new_optimizer(model, head_only=first)
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        num_steps = epochs * stream.steps_per_epoch
        for step in range(num_steps):
            (batch,) = next(iter(stream))
            targets = batch.targets.argmax(dim=1)
            for group in optimizer.param_groups:
                group["lr"] = schedule(step, num_steps) * group["share"]
            logits = model(Normaliser(spec.mean, spec.std)(batch.pixels))
            loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none", label_smoothing=SMOOTHING)
            loss = (loss * class_weights[targets]).mean()
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, MAX_NORM)
            optimizer.step()
            share = min(EMA, (1 + count) / (10 + count))
            for name, weight in model.named_parameters():
                average[name] = share * average[name] + (1 - share) * weight.detach()
            losses.append(loss.item())
            count += 1
    stream.close()
    return {"losses": losses, "average": average}


@torch.inference_mode()
def divergence(student: torch.nn.Module, folder: Path) -> float:
    """Mean divergence of a student from the teacher on the view's val split."""
    view, spec = open_view(str(folder)), input_spec(student)
    config = StreamConfig(num_lanes=8, num_workers=0)
    stream = EvalStream(view, split="val", config=config, size=32, crop_share=spec.crop_share, batch_size=22)
    (batch,) = stream
    log_probabilities = student(Normaliser(spec.mean, spec.std)(batch.pixels)).log_softmax(dim=1)
    return torch.nn.functional.kl_div(log_probabilities, batch.targets, reduction="batchmean").item()


CUTS = {1: 9, 2: None, 3: 13}
"""ZeRO stage → after how many steps its run is broken off: where all begin to learn, and amid what follows."""
MIXED = (
    "--deepspeed=configs/deepspeed/zero2.json", "--epochs=3", "--frozen_epochs=1", "--micro_batch_size=4",
    "--optimizer.lr=3e-3", "--mixup=0.3", "--augment.rand_augment=0.3", "--augment.min_crop_area=1",
    "--loss.kind=mixed", "--loss.hard_share=0.5", "--loss.confidence_power=1", "--loss.class_weights=balanced",
)  # fmt: skip


@pytest.fixture(scope="module")
def by_two_ranks(small_view: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of two ranks lie, each in a folder by its ZeRO stage; and `mixed`."""
    folder = tmp_path_factory.mktemp("two-ranks")
    runs = [settings(small_view, folder / "mixed", *MIXED)]
    for stage, cut in CUTS.items():  # 3 is last: it changes torch itself, for the whole process
        more = (f"--deepspeed={float32_config(folder, stage)}", "--keep_checkpoints=1")
        arguments = settings(small_view, folder / str(stage), *RECIPE, *more)
        runs += [[*arguments, f"--max_steps={cut}"], arguments] if cut else [arguments]
    train_in_turn(2, runs, folder)
    return folder


@pytest.mark.parametrize("stage", CUTS)
def test_two_ranks_make_the_moving_average_of_a_plain_loop_to_float32_accuracy(reference, by_two_ranks, stage):
    output = by_two_ranks / str(stage)
    assert [line["loss"] for line in steps(output)] == pytest.approx(reference["losses"], rel=1e-4)
    student = load_student(str(output / "student"))
    assert len(reference["average"]) == len(list(student.parameters()))
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight.detach(), reference["average"][name], rtol=1e-5, atol=1e-6, msg=name)


def test_two_ranks_learn_from_mixed_pictures_and_both_losses(by_two_ranks):
    validation = [line for line in read_metrics(by_two_ranks / "mixed") if line["kind"] == "validation"]
    assert validation[-1]["loss"] < validation[0]["loss"] * 0.9


def test_without_zero_the_average_is_of_the_float32_weights_though_bfloat16_ones_learn(reference, small_view, tmp_path):
    zero = "--deepspeed=configs/deepspeed/zero0.json"
    done = launch("python", settings(small_view, tmp_path, *RECIPE, zero))
    assert done.returncode == 0, done.stdout
    student = load_student(str(tmp_path / "student"))
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight.detach(), reference["average"][name], rtol=0.05, atol=5e-3, msg=name)
        assert weight.numel() < 100 or not torch.equal(weight, weight.bfloat16().float())
    # What is validated is what is exported.
    *_, validation = [line for line in read_metrics(tmp_path) if line["kind"] == "validation"]
    assert validation["kl"] == pytest.approx(divergence(student, small_view), rel=0.02)
