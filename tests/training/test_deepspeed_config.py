import json
import re

import pytest

from shards.errors import ConfigError, UserError
from xmodal.training.config import LossConfig, OptimizerConfig, TrainConfig
from xmodal.training.engine import micro_batches_per_step, parameter_groups, resolve_deepspeed_config

SIZES = {"global_batch_size": 64, "micro_batches": 2, "world_size": 4, "max_grad_norm": 0.5}


@pytest.mark.parametrize("name", ["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zero2_fp16"])
def test_each_shipped_config_is_filled_in(name):
    config = resolve_deepspeed_config(f"configs/deepspeed/{name}.json", **SIZES)
    assert config["zero_optimization"]["stage"] == int(name[4])
    assert config["train_batch_size"] == 64
    assert config["train_micro_batch_size_per_gpu"] == 8
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert "auto" not in json.dumps(config)


def test_ours_are_known_in_any_folder_and_those_of_the_folder_come_first(tmp_path, monkeypatch):
    name = "configs/deepspeed/zero3.json"
    monkeypatch.chdir(tmp_path)
    assert resolve_deepspeed_config(name, **SIZES)["zero_optimization"]["stage"] == 3
    (tmp_path / "configs" / "deepspeed").mkdir(parents=True)
    (tmp_path / name).write_text('{"zero_optimization": {"stage": 1}}')
    assert resolve_deepspeed_config(name, **SIZES)["zero_optimization"]["stage"] == 1


def test_a_file_that_contradicts_the_training_config_is_refused(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text('{"train_batch_size": 32, "zero_optimization": {"stage": 2}}')
    with pytest.raises(UserError, match="train_batch_size: 32 is not 64"):
        resolve_deepspeed_config(str(path), **SIZES)


@pytest.mark.parametrize(("content", "complaint"), [(None, "no such file"), ("{", "not JSON")])
def test_a_missing_or_broken_file_is_named(tmp_path, content, complaint):
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=complaint) as caught:
        resolve_deepspeed_config(str(path), **SIZES)
    assert str(path) in caught.value.what


@pytest.mark.parametrize(
    "content",
    ["{}", '{"zero_optimisation": {"stage": 2}}', '{"zero_optimization": 2}', '{"zero_optimization": {"stage": 7}}'],
)
def test_a_file_that_would_silently_train_without_zero_is_refused(tmp_path, content):
    path = tmp_path / "zero.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"zero_optimization\.stage: not 0, 1, 2 or 3"):
        resolve_deepspeed_config(str(path), **SIZES)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"bf16": None}, "bf16: null is no section"),
        ({"fp16": True}, "fp16: true is no section"),
        ({"data_types": "bf16"}, 'data_types: "bf16" is no section'),
        ({"bf16": {"enabled": "auto"}}, 'bf16.enabled: "auto", and nothing else says it'),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow: false, but steps whose gradients"),
        ({"bf16": {"check_grad_overflow": "off"}}, 'bf16.check_grad_overflow: "off", but steps'),
        (
            {"zero_optimization": {"stage": 2, "compute_grad_norm": False}},
            "zero_optimization.compute_grad_norm: false, but steps whose gradients are not",
        ),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation: false, but without it"),
        ({"bfloat16": {"enabled": True}}, "bfloat16: an old name of this section"),
        ({"optimizer": {"type": "SGD"}}, "optimizer: DeepSpeed's file is not asked for it"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler: DeepSpeed's file is not asked for it"),
        ({"zero_optimization": {"stage": 0, "reduce_bucket_size": "large"}}, "DeepSpeed refuses it"),
    ],
)
def test_what_would_be_passed_over_or_trip_over_something_later_is_refused(tmp_path, more, complaint):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 0}} | more))
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        resolve_deepspeed_config(str(path), **SIZES)
    for key, ours in (("optimizer", "optimizer.kind, lr, betas and weight_decay"), ("scheduler", "warmup_share")):
        assert key not in more or ours in caught.value.remedy


def test_auto_within_a_section_leaves_it_to_deepspeed_as_it_does_itself(tmp_path):
    path = tmp_path / "zero.json"
    zero = {"stage": 3, "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto"}
    path.write_text(
        json.dumps(
            {
                "bf16": {"enabled": True, "check_grad_overflow": "auto"},
                "zero_optimization": zero | {"offload_param": {"pin_memory": "auto"}, "compute_grad_norm": True},
            }
        )
    )
    config = resolve_deepspeed_config(str(path), **SIZES)
    assert config["bf16"] == {"enabled": True}
    assert config["zero_optimization"] == {"stage": 3, "offload_param": {}, "compute_grad_norm": True}


@pytest.mark.parametrize(
    ("batch", "micro", "ranks", "expected"), [(64, 0, 2, 1), (64, 32, 2, 1), (64, 8, 2, 4), (64, 100, 2, 1)]
)
def test_a_step_is_cut_into_micro_batches(batch, micro, ranks, expected):
    assert micro_batches_per_step(batch, micro, ranks) == expected


@pytest.mark.parametrize(("batch", "micro", "ranks"), [(64, 0, 3), (64, 7, 2)])
def test_sizes_that_do_not_divide_are_refused(batch, micro, ranks):
    with pytest.raises(UserError):
        micro_batches_per_step(batch, micro, ranks)


def test_biases_norms_and_what_the_model_exempts_are_not_decayed():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    groups = parameter_groups(model, 0.3, layer_decay=1)
    assert [(group["weight_decay"], group["in_head"]) for group in groups] == [
        (0.3, False), (0.3, True), (0.0, False), (0.0, True),
    ]  # fmt: skip
    decayed, plain = ([p for group in pair for p in group["params"]] for pair in (groups[:2], groups[2:]))
    assert all(parameter.ndim >= 2 for parameter in decayed)
    ids = {id(parameter) for parameter in plain}
    assert id(model.pos_embed) in ids
    assert id(model.cls_token) in ids
    assert len(decayed) + len(plain) == len(list(model.parameters()))
    assert groups[1]["params"] == [model.head.weight]
    assert groups[3]["params"] == [model.head.bias]


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("vit_tiny_patch16_224", ["patch_embed", "blocks.0", "blocks.1", "head"]),
        ("resnet10t", ["conv1", "layer1", "layer2", "layer3", "layer4", "fc"]),
    ],
)
def test_each_layer_learns_at_a_share_of_the_rate_of_the_one_above_it(model, layers):
    import timm

    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} if "vit" in model else {}
    student = timm.create_model(model, num_classes=3, **arguments)
    groups = parameter_groups(student, 0.3, layer_decay=0.5)
    of_parameter = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of_parameter) == len(list(student.parameters()))
    expected = {layer: 0.5 ** (len(layers) - 1 - number) for number, layer in enumerate(layers)}
    for name, parameter in student.named_parameters():
        layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
        group = of_parameter[id(parameter)]
        if layer is not None:
            assert group["lr_scale"] == expected[layer], name
        assert group["weight_decay"] == (
            0.3
            if (parameter.ndim > 1 and "embed" not in name and "token" not in name) or name == "patch_embed.proj.weight"
            else 0.0
        ), name


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: OptimizerConfig(lr=3e4), "lr"),
        (lambda: OptimizerConfig(betas=(0.9, 1.0)), "betas"),
        (lambda: OptimizerConfig(layer_decay=0.0), "layer_decay"),
        (lambda: LossConfig(label_smoothing=0.2), "label_smoothing"),
        (lambda: LossConfig(kind="hard", temperature=2.0), "temperature"),
        (lambda: LossConfig(hard_share=0.5), "hard_share"),
        (lambda: LossConfig(kind="mixed"), "hard_share"),
        (lambda: LossConfig(kind="mixed", hard_share=1.0), "hard_share"),
        (lambda: LossConfig(confidence_power=-1.0), "confidence_power"),
        (lambda: TrainConfig(view="v", output="o", epochs=0), "epochs"),
        (lambda: TrainConfig(view="v", output="o", epochs=2, frozen_epochs=3), "frozen_epochs"),
        (lambda: TrainConfig(view="v", output="o", keep_features=True), "keep_features"),
        (lambda: TrainConfig(view="v", output="o", frozen_epochs=1, feature_folder="f"), "feature_folder"),
        (lambda: TrainConfig(view="v", output="o", keep_features=True, frozen_epochs=1, mixup=0.2), "mixup"),
    ],
)
def test_values_out_of_range_name_their_key(make, key):
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.key == key
