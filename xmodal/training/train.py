"""The training program: one loop, whichever launcher started it and whatever the ZeRO stage."""

import json
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from shards.batches import Batch, Normaliser
from shards.errors import UserError
from shards.storage import LocalStorage, open_storage
from shards.stream import EvalStream, told_of_lost_workers
from shards.view import View, open_view, target_array
from xmodal.curation.forgotten import refuse_forgotten
from xmodal.students import create_student, export_student
from xmodal.training import ema
from xmodal.training.agreement import require_agreement, versions
from xmodal.training.checkpoint import Keep, load_checkpoint, read_best_weights, save_checkpoint
from xmodal.training.config import TrainConfig
from xmodal.training.costs import PASSES, forward_flops, utilisation
from xmodal.training.ema import decay_of_step
from xmodal.training.engine import (
    average_buffers,
    deepspeed_file,
    frozen_backbone,
    full_averaged_weights,
    gradient_norm,
    loss_scale,
    restart_optimizer,
    set_ema_decay,
    set_learning_rate,
)
from xmodal.training.engine_state import WEIGHT
from xmodal.training.feature_store import FeatureStore, backbone_fingerprint, picture_ids
from xmodal.training.features import Features, head_alone, read_features
from xmodal.training.job import joined_ranks
from xmodal.training.mixup import draw_share, mix_with_reversed
from xmodal.training.nonfinite import SkippedSteps, describe, gather_suspects, too_many
from xmodal.training.pinned_config import dotted, pin_config
from xmodal.training.preparation import prepare, start_engine
from xmodal.training.provenance import last_validation, provenance_of, settings_without_paths
from xmodal.training.ranks import Ranks
from xmodal.training.schedule import learning_rate, step_in_phase
from xmodal.training.step_log import StepClock, StepLog, checksum, memory_gib
from xmodal.training.stop import StopRequest
from xmodal.training.trackers import TrackedRun, open_trackers, require_trackers
from xmodal.training.upload import Upload, fetch_newest
from xmodal.training.validation import NUM_SUMS, validation_metrics, validation_sums
from xmodal.training.watchdog import Watchdog

log = logging.getLogger(__name__)


def train(config: TrainConfig) -> bool:
    """Train a student and export it to `<output>/student`; goes on from the last complete checkpoint, if any.

    Returns False where it was asked to stop before its end; a checkpoint was made then. Raises UserError for a view, a
    student or sizes that do not go together, for a view of posts that were forgotten since it was made, and for ranks
    that do not agree, before the first step; and where another rank is lost.
    """
    # Before the ranks wait for each other: the likeliest mistakes are told at once.
    view = _begin(config)
    with joined_ranks(config.peer_timeout) as ranks:
        return _train(config, view, ranks)


def train_within(config: TrainConfig, ranks: Ranks) -> bool:
    """As `train`, by ranks that have met (`joined_ranks`) and may do more together: several runs, one after another."""
    return _train(config, _begin(config), ranks)


def _begin(config: TrainConfig) -> View:
    """What can be found out alone: the view, checked; the output folder is there then."""
    view = open_view(config.view)
    if not config.allow_forgotten:
        refuse_forgotten(view)
    require_trackers(config.trackers)
    LocalStorage(config.output, create=True)
    return view


def _train(config: TrainConfig, view: View, ranks: Ranks) -> bool:
    require_agreement(_facts(config, view), ranks)
    stop = StopRequest(Path(config.stop_file or Path(config.output, "stop")))
    if config.upload:
        if ranks.is_first:
            fetch_newest(open_storage(config.upload, create=True), Path(config.output))
        dist.barrier()
    with told_of_lost_workers(), stop.listening(), Watchdog(config.step_timeout, ranks.rank) as watchdog:
        run = _Run(config, view, ranks, stop, watchdog)
        finished = run.run()
        run.engine.destroy()
    return finished


def _facts(config: TrainConfig, view: View) -> dict[str, Any]:
    """What all ranks must have in common. Paths may differ from host to host; what lies there may not."""
    settings = {
        f"config.{name}": value
        for name, value in dotted(json.loads(json.dumps(asdict(config))))
        if name not in ("view", "output", "deepspeed", "stop_file", "feature_folder", "stream.cache_folder")
    }
    file = deepspeed_file(config.deepspeed)
    content = file.read_text(errors="replace") if file.is_file() else None  # that it is missing is told later
    return {**settings, "the content of `deepspeed`": content, "the view's fingerprint": view.fingerprint, **versions()}


class _Run:
    def __init__(self, config: TrainConfig, view: View, ranks: Ranks, stop: StopRequest, watchdog: Watchdog) -> None:
        self.config, self.ranks, self.stop, self.watchdog = config, ranks, stop, watchdog
        self.folder = Path(config.output)
        prepared = prepare(config, view, ranks)
        self.spec, self.stream, self.loss, self.peak = prepared.spec, prepared.stream, prepared.loss, prepared.peak
        self.normalise = Normaliser(self.spec.mean, self.spec.std)
        self.schedule_steps, self.frozen_steps = prepared.schedule_steps, prepared.frozen_steps
        self.total_steps = prepared.total_steps
        # Before there is an engine: ZeRO 3 takes the weights out of the model.
        self.fingerprint = backbone_fingerprint(prepared.model, self.spec) if config.feature_folder else ""
        self.flops = forward_flops(prepared.model, self.spec.size) if self.peak and ranks.is_first else None
        self.engine = start_engine(config, prepared.model, prepared.deepspeed)
        self.dtype = next(self.engine.module.parameters()).dtype
        self.view = view
        self.step = 0
        self.run_id = secrets.token_hex(8)
        self.skipped = SkippedSteps(config.max_skipped_steps)
        self.features: dict[str, Features] = {}  # of train and val, while they are what is learned from
        self.upload: Upload | None = None

    def run(self) -> bool:
        """To the end, with an export, or to a stop request, with a checkpoint; whether it was the end."""
        state = load_checkpoint(self.engine, self.folder / "checkpoints", ranks=self.ranks)
        if state is not None:
            self.step, self.run_id = state["step"], state["run_id"]
            self.stream.load_state_dict(state["stream"])
            self.skipped.load_state_dict(state["skipped"])
            if self.step > self.total_steps:
                raise UserError(
                    f"{self.folder}: at step {self.step} already, beyond the {self.total_steps} of max_steps",
                    "raise max_steps, or give a new `output` folder",
                )
            log.info("resuming at step %d of %d", self.step, self.total_steps)
        self.log = self._step_log() if self.ranks.is_first else None
        if self.ranks.is_first:
            if state is None:
                pin_config(self.folder, self.config)
            if self.config.upload:
                self.upload = Upload(self.folder, open_storage(self.config.upload, create=True))
                self.upload.start()  # of what was killed before
            log.info(
                "%d samples, %d steps of %d on %d ranks, ZeRO-%d, %s",
                self.stream.num_samples,
                self.total_steps,
                self.config.global_batch_size,
                self.ranks.world_size,
                self.engine.zero_optimization_stage(),
                self.dtype,
            )
        stopped = False
        if self.config.keep_features and self.step < min(self.frozen_steps, self.total_steps):
            self._keep_features()
        while self.step < self.total_steps and not stopped:
            if self.features and self.step >= self.frozen_steps:
                self.features = {}
                self.stream.read_pixels()
            epoch = self.stream.epoch
            stopped = self._train_epoch()
            if self.stream.epoch > epoch or self.step == self.total_steps:
                self.watchdog.progress("validation")
                average_buffers(self.engine.module, self.ranks.world_size)
                cost = self._validate(epoch)
                if stopped or self._is_epoch_saved(epoch):
                    self._save(cost)
            elif stopped:
                self._save()
        self.stream.close()
        finished = self.step == self.total_steps
        if finished:
            self.watchdog.progress("the export of the student")
            self._export()
        if self.log:
            self.log.close()
            if stopped:
                self.stop.answered()
            if not finished:
                log.info("stopped at step %d of %d, as asked; start it again to go on", self.step, self.total_steps)
        if self.config.upload:
            self._finish_upload()
        return finished

    def _step_log(self) -> StepLog:
        tracked = TrackedRun(
            folder=self.folder,
            run_id=self.run_id,
            wandb_project=self.config.wandb_project,
            settings=settings_without_paths(asdict(self.config)),
            resumed_step=self.step,
        )
        trackers = open_trackers(self.config.trackers, tracked)
        return StepLog(self.folder, resumed_step=self.step, trackers=trackers)

    def _is_epoch_saved(self, epoch: int) -> bool:
        every = self.config.checkpoint_every_epochs
        return bool(every) and ((epoch + 1) % every == 0 or self.step == self.total_steps)

    def _save(self, validation_cost: float | None = None) -> None:
        self.watchdog.progress("saving a checkpoint")
        save_checkpoint(
            self.engine,
            self.folder / "checkpoints",
            step=self.step,
            state={
                "stream": self.stream.state_dict(),
                "skipped": self.skipped.state_dict(),
                "validation_cost": validation_cost,
                "run_id": self.run_id,  # the first rank's is kept
            },
            ranks=self.ranks,
            keep=Keep(last=self.config.keep_checkpoints, every_steps=self.config.keep_every_steps),
        )
        if self.upload:
            self.upload.start()

    def _finish_upload(self) -> None:
        """All ranks wait for the first one's: launchers end those that are left soon after one has ended."""
        is_done = False
        while not is_done:
            self.watchdog.progress("the upload of checkpoints")
            votes = torch.tensor([int(self.upload is None or self.upload.is_done(1.0))], device=self.engine.device)
            dist.all_reduce(votes, op=dist.ReduceOp.MIN)
            is_done = bool(votes.item())

    def _keep_features(self) -> None:
        """Have the backbone look at all pictures once; the stream then needs to read none."""
        flip, store = self.config.augment.flip, None
        if self.fingerprint and self.ranks.is_first:
            name = f"{self.fingerprint[:32]}-{str(self.dtype).removeprefix('torch.')}{'-flipped' if flip else ''}"
            store = FeatureStore(open_storage(self.config.feature_folder, create=True), name)
        for split in ("train", "val"):
            if not self.view.description["counts"]["splits"][split]:
                continue
            log.info("the frozen backbone looks at the pictures of %s", split)
            self.features[split] = read_features(
                self.engine,
                partial(self._eval_stream, split),
                picture_ids(self.view.split(split).rows),
                flip=flip,
                to_pixels=self._pixels,
                progress=lambda: self.watchdog.progress("the features of all pictures"),
                store=store,
            )
        self.stream.leave_out_pixels(~self.features["train"].known.numpy())

    @contextmanager
    def _phase(self) -> Iterator[None]:
        """What the coming step is to be done in; no checkpoint may be saved within it, since parts are frozen."""
        self.engine.train()
        if self.step == self.frozen_steps:
            restart_optimizer(self.engine)
        with (
            frozen_backbone(self.engine.module) if self.step < self.frozen_steps else nullcontext(),
            head_alone(self.engine.module) if self.features else nullcontext(),
        ):
            yield

    def _train_epoch(self) -> bool:
        """Steps to the end of the epoch, or of the run, or to a stop request; whether it was one."""
        clock = StepClock()
        losses: list[torch.Tensor] = []
        samples = 0
        self.watchdog.progress(f"step {self.step + 1}")
        for micro_batches in self.stream:
            clock.data_arrived(sum(len(batch.rows) for batch in micro_batches))
            # Drop path and dropout depend on (seed, step, rank) alone: a resumed run draws what it would have drawn.
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 4096 + self.ranks.rank)
            rate = learning_rate(
                *step_in_phase(self.step, self.frozen_steps, self.schedule_steps),
                peak=self.config.optimizer.lr,
                final_share=self.config.optimizer.final_lr_share,
                warmup_share=self.config.optimizer.warmup_share,
            )
            set_learning_rate(self.engine, rate, head_only=self.step < self.frozen_steps)
            if self.config.optimizer.ema_decay:
                set_ema_decay(self.engine, decay_of_step(self.step, self.config.optimizer.ema_decay))
            with self._phase():
                losses_of_samples = [self._forward_and_backward(batch) for batch in micro_batches]
            losses += [one.mean() for one in losses_of_samples]
            samples += sum(checksum(batch.rows) for batch in micro_batches)
            self.step += 1
            self._count_if_skipped(micro_batches, losses_of_samples)
            clock.step_done()
            epoch_ended = self.stream.step == 0
            if self.step % self.config.log_every_steps == 0 or epoch_ended or self.step == self.total_steps:
                self._log_steps(losses, rate, clock, samples)
                losses, samples = [], 0
            stopped = self.stop.agreed(self.engine.device, looks_for_file=self.ranks.is_first)
            if stopped or epoch_ended or self.step == self.total_steps:
                return stopped
            every = self.config.checkpoint_every_steps
            if every and self.step % every == 0:
                self._save()
                clock.step_done()
            self.watchdog.progress(f"step {self.step + 1}")
        raise AssertionError("a stream ends with its epoch")

    def _count_if_skipped(self, batches: list[Batch], losses: list[torch.Tensor]) -> None:
        """See whether the step changed the weights. Raises UserError after too many that did not."""
        self.skipped.add(was_applied=self.engine.was_step_applied())
        if not self.skipped.in_a_row:
            return
        keys = self.view.split("train").rows["key"]
        rows = [row for batch in batches for row in batch.rows.tolist()]
        found = gather_suspects(torch.cat(losses), [keys[row].as_py() for row in rows], self.ranks)
        if self.skipped.are_too_many():
            raise too_many(self.skipped.in_a_row, self.step, describe(*found, loss_scale(self.engine)))
        if self.ranks.is_first:
            log.warning("step %d was skipped: %s", self.step, describe(*found, loss_scale(self.engine)))

    def _forward_and_backward(self, batch: Batch) -> torch.Tensor:
        """One micro-batch; the engine steps its optimizer with the last of a step. Returns its samples' losses."""
        targets = batch.targets.to(self.engine.device)
        if self.features:
            losses = self.loss(self.engine(self.features["train"].draw(batch.rows).to(self.engine.device)), targets)
            return self._backward(losses)
        pixels = self._pixels(batch)
        if self.config.mixup:
            share = draw_share(self.config.mixup)
            logits = self.engine(mix_with_reversed(pixels, share))
            losses = share * self.loss(logits, targets) + (1 - share) * self.loss(logits, targets.flip(0))
        else:
            losses = self.loss(self.engine(pixels), targets)
        return self._backward(losses)

    def _backward(self, losses: torch.Tensor) -> torch.Tensor:
        self.engine.backward(losses.mean())
        self.engine.step()
        return losses.detach()

    def _pixels(self, batch: Batch) -> torch.Tensor:
        pixels = batch.pixels.to(self.engine.device, non_blocking=True)
        # Not with channels last: on processors a ViT then takes an eighth longer, and a ResNet or ConvNeXt no less.
        return self.normalise(pixels).to(self.dtype)

    def _log_steps(self, losses: list[torch.Tensor], rate: float, clock: StepClock, samples: int) -> None:
        loss = torch.stack(losses).mean()
        dist.all_reduce(loss)
        all_samples = torch.tensor(samples, device=loss.device)
        dist.all_reduce(all_samples)
        timing = clock.read()
        if self.log:
            values = {
                "loss": loss.item() / self.ranks.world_size,
                "grad_norm": gradient_norm(self.engine),
                "loss_scale": loss_scale(self.engine),
                "lr": rate,
                "images_per_second": timing["images_per_second"] * self.ranks.world_size,
                "mfu": self._mfu(timing["images_per_second"]),
                "data_wait_share": timing["data_wait_share"],
                "memory_gib": memory_gib(),
                "damaged": self.stream.num_damaged,
                "skipped": self.skipped.total,
                "samples": all_samples.item(),
            }
            self.log.write("step", self.step, values)

    def _mfu(self, images_per_second: float) -> float | None:
        """Of this rank, as all others; None where the device's peak is not known, or the head alone computes."""
        if not self.peak or not self.flops or self.features:
            return None
        # A frozen backbone has a forward pass alone.
        passes = PASSES if self.step > self.frozen_steps else 1
        return utilisation(images_per_second, passes * self.flops, self.peak)

    @torch.no_grad()
    def _validate(self, epoch: int) -> float | None:
        """Against the teacher, on the view's val split: every sample once over all ranks.

        Returns what is least in the best one; None where there is nothing to validate on.
        """
        if not self.view.description["counts"]["splits"]["val"]:
            return None
        student = self._averaged_student() if self.config.optimizer.ema_decay else self.engine
        student.eval()
        sums = torch.zeros(NUM_SUMS, dtype=torch.float64, device=self.engine.device)
        for logits, targets, mask in self._val_logits(student):
            sums += validation_sums(logits, targets, self.loss(logits, targets), mask)
        dist.all_reduce(sums)
        values = validation_metrics(sums)
        if not values:
            return None
        if self.log:
            self.log.write("validation", self.step, {"epoch": epoch, **values})
        agreement = values["polarity_agreement"]
        if self.config.select == "polarity_agreement" and agreement is not None:
            return -agreement
        return values["kl"]

    def _val_logits(self, student: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Logits, targets and mask of this rank's share of the val split."""
        device = self.engine.device
        if not self.features:
            for batch in self._eval_stream("val"):
                logits = student(self._pixels(batch)).float()
                yield logits, batch.targets.to(device), batch.mask.to(device)
            return
        features = self.features["val"]
        rows = torch.arange(self.ranks.rank, len(features.known), self.ranks.world_size)
        with head_alone(getattr(student, "module", student)):
            logits = student(features.values[0, rows].to(device)).float()
        targets = torch.from_numpy(target_array(self.view.split("val").rows))[rows]
        yield logits, targets.to(device), features.known[rows].to(device)

    def _eval_stream(self, split: str, rows: np.ndarray | None = None) -> EvalStream:
        return EvalStream(
            self.view,
            split=split,
            config=self.config.stream,
            size=self.spec.size,
            crop_share=self.spec.crop_share,
            squash=self.spec.squash,
            batch_size=self.engine.train_micro_batch_size_per_gpu(),
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            rows=rows,
        )

    def _averaged_student(self) -> torch.nn.Module:
        """The moving average, whole on each rank, in the precision that is trained in."""
        return self._student(full_averaged_weights(self.engine)).to(self.engine.device, self.dtype)

    def _student(self, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
        model = create_student(replace(self.config.student, pretrained=False))
        model.load_state_dict(weights)
        return model

    def _export(self) -> None:
        has_average = bool(self.config.optimizer.ema_decay)
        step = self.step
        if self.config.select == "last":
            weights = full_averaged_weights(self.engine)
        elif self.ranks.is_first:
            weights, step = read_best_weights(self.folder / "checkpoints", ema.KEY if has_average else WEIGHT)
        if not self.ranks.is_first:
            return
        provenance = provenance_of(
            asdict(self.config),
            view_fingerprint=self.view.fingerprint,
            view=self.view.description,
            steps=step,
            weights="ema" if has_average else "raw",
            validation=last_validation(self.folder, step),
        )
        export_student(
            self._student(weights),
            str(self.folder / "student"),
            crop_share=self.spec.crop_share,
            squash=self.spec.squash,
            provenance=provenance,
        )
        log.info("student of step %d exported to %s", step, self.folder / "student")
