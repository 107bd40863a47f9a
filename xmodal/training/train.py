"""The training program: one loop, whichever launcher started it and whatever the ZeRO stage."""

import logging
import math
import secrets
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from shards.batches import Batch
from shards.errors import UserError
from shards.storage import LocalStorage, open_storage
from shards.stream import told_of_lost_workers
from shards.view import View, open_view
from xmodal.curation.forgotten import refuse_forgotten
from xmodal.students import require_replaceable
from xmodal.training.agreement import facts_of_run, require_agreement
from xmodal.training.checkpoint import Keep, load_checkpoint, save_checkpoint
from xmodal.training.config import TrainConfig
from xmodal.training.costs import PASSES, forward_flops, utilisation
from xmodal.training.engine import average_buffers, gradient_norm, loss_scale
from xmodal.training.feature_store import backbone_fingerprint, open_feature_store
from xmodal.training.features import Features, features_of_splits
from xmodal.training.job import joined_ranks
from xmodal.training.nonfinite import SkippedSteps, describe, gather_suspects, too_many
from xmodal.training.pictures import Pictures
from xmodal.training.pinned_config import pin_config
from xmodal.training.preparation import prepare, start_engine
from xmodal.training.provenance import settings_without_paths
from xmodal.training.ranks import Ranks
from xmodal.training.step_log import StepLog, StepSums, memory_gib
from xmodal.training.stop import StopRequest
from xmodal.training.together import first_does
from xmodal.training.trackers import TrackedRun, open_trackers, require_trackers
from xmodal.training.train_step import TrainStep
from xmodal.training.trained_student import averaged_student, export_trained
from xmodal.training.upload import Upload, fetch_checkpoints, wait_for_upload
from xmodal.training.validation import selection_cost, validate
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
    require_replaceable(str(Path(config.output, "student")))  # told now, not after weeks of training
    return view


def _train(config: TrainConfig, view: View, ranks: Ranks) -> bool:
    require_agreement(facts_of_run(config, view), ranks)
    stop = StopRequest(Path(config.stop_file or Path(config.output, "stop")))
    if config.upload:
        first_does(lambda: fetch_checkpoints(open_storage(config.upload, create=True), Path(config.output)), ranks)
    with told_of_lost_workers(), stop.listening(), Watchdog(config.step_timeout, ranks.rank) as watchdog:
        run = _Run(config, view, ranks, stop, watchdog)
        finished = run.run()
        run.engine.destroy()
    return finished


class _Run:
    """The loop: steps, epoch by epoch, with validations and checkpoints between them."""

    def __init__(self, config: TrainConfig, view: View, ranks: Ranks, stop: StopRequest, watchdog: Watchdog) -> None:
        self.config, self.view, self.ranks, self.stop, self.watchdog = config, view, ranks, stop, watchdog
        self.folder = Path(config.output)
        self.keep = Keep(last=config.keep_checkpoints, every_steps=config.keep_every_steps)
        prepared = prepare(config, view, ranks)
        self.spec, self.stream, self.loss, self.peak = prepared.spec, prepared.stream, prepared.loss, prepared.peak
        self.frozen_steps, self.total_steps = prepared.frozen_steps, prepared.total_steps
        # Before there is an engine: ZeRO 3 takes the weights out of the model.
        self.fingerprint = backbone_fingerprint(prepared.model, self.spec) if config.feature_folder else ""
        self.flops = forward_flops(prepared.model, self.spec.size) if self.peak and ranks.is_first else None
        self.engine = start_engine(config, prepared.model, prepared.deepspeed)
        self.pictures = Pictures(
            view,
            self.spec,
            config.stream,
            batch_size=self.engine.train_micro_batch_size_per_gpu(),
            ranks=ranks,
            device=self.engine.device,
            dtype=next(self.engine.module.parameters()).dtype,
        )
        self.train_step = TrainStep(self.engine, self.pictures, prepared)
        self.step = 0
        self.run_id = secrets.token_hex(8)
        self.skipped = SkippedSteps(config.max_skipped_steps)
        self.features: dict[str, Features] = {}  # of train and val, while they are what is learned from
        # Of the first rank alone.
        self.log: StepLog | None = None
        self.upload: Upload | None = None

    def run(self) -> bool:
        """To the end, with an export, or to a stop request, with a checkpoint; whether it was the end."""
        is_resumed = self._resume()
        if self.ranks.is_first:
            self._open_records(is_resumed=is_resumed)
        if self.config.keep_features and self.step < min(self.frozen_steps, self.total_steps):
            self._keep_features()
        stopped = self._train_epochs()
        self.stream.close()
        finished = self.step == self.total_steps
        if finished:
            self.watchdog.progress("the export of the student")
            export_trained(self.engine, self.config, self.view, self.spec, step=self.step, ranks=self.ranks)
        if self.log:
            self.log.close()
            if stopped:
                self.stop.answered()
            if not finished:
                log.info("stopped at step %d of %d, as asked; start it again to go on", self.step, self.total_steps)
        if self.config.upload:
            progress = partial(self.watchdog.progress, "the upload of checkpoints")
            at_most = self.config.upload_grace if stopped else math.inf
            wait_for_upload(self.upload, self.engine.device, progress, at_most)
        return finished

    def _resume(self) -> bool:
        """Go on from the last complete checkpoint; whether there was one."""
        required = {"run_id": str, "stream": dict, "skipped": dict}
        state = load_checkpoint(self.engine, self.folder / "checkpoints", ranks=self.ranks, required=required)
        if state is None:
            return False
        self.step, self.run_id = state["step"], state["run_id"]
        self.stream.load_state_dict(state["stream"])
        self.skipped.load_state_dict(state["skipped"])
        if self.step > self.total_steps:
            raise UserError(
                f"{self.folder}: at step {self.step} already, beyond the {self.total_steps} of max_steps",
                "raise max_steps, or give a new `output` folder",
            )
        log.info("resuming at step %d of %d", self.step, self.total_steps)
        return True

    def _open_records(self, *, is_resumed: bool) -> None:
        """What the first rank keeps of the run: its log, its config, and copies of its checkpoints."""
        tracked = TrackedRun(
            folder=self.folder,
            run_id=self.run_id,
            wandb_project=self.config.wandb_project,
            settings=settings_without_paths(asdict(self.config)),
            resumed_step=self.step,
        )
        trackers = open_trackers(self.config.trackers, tracked)
        self.log = StepLog(self.folder, resumed_step=self.step, trackers=trackers)
        if not is_resumed:
            pin_config(self.folder, self.config)
        if self.config.upload:
            self.upload = Upload(self.folder, open_storage(self.config.upload, create=True), self.keep)
            self.upload.start()  # of what was killed before
        log.info(
            "%d samples, %d steps of %d on %d ranks, ZeRO-%d, %s",
            self.stream.num_samples,
            self.total_steps,
            self.config.global_batch_size,
            self.ranks.world_size,
            self.engine.zero_optimization_stage(),
            self.pictures.dtype,
        )

    def _keep_features(self) -> None:
        """Have the backbone look at all pictures once; the stream then needs to read none."""
        flip, store = self.config.augment.flip, None
        if self.fingerprint and self.ranks.is_first:
            store = open_feature_store(self.config.feature_folder, self.fingerprint, self.pictures.dtype, flip=flip)
        progress = partial(self.watchdog.progress, "the features of all pictures")
        self.features = features_of_splits(self.engine, self.pictures, flip=flip, progress=progress, store=store)
        self.stream.leave_out_pixels(~self.features["train"].known.numpy())

    def _train_epochs(self) -> bool:
        """To the end of the run, or to a stop request; whether it was one."""
        stopped = False
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
        return stopped

    def _train_epoch(self) -> bool:
        """Steps to the end of the epoch, or of the run, or to a stop request; whether it was one."""
        sums = StepSums()
        self.watchdog.progress(f"step {self.step + 1}")
        for micro_batches in self.stream:
            sums.clock.data_arrived(sum(len(batch.rows) for batch in micro_batches))
            rate, losses = self.train_step.take(self.step, micro_batches, self.features.get("train"))
            sums.add(micro_batches, losses)
            self.step += 1
            self._count_if_skipped(micro_batches, losses)
            sums.clock.step_done()
            epoch_ended = self.stream.step == 0
            if self.step % self.config.log_every_steps == 0 or epoch_ended or self.step == self.total_steps:
                self._log_steps(sums, rate)
            stopped = self.stop.agreed(self.engine.device, looks_for_file=self.ranks.is_first)
            if stopped or epoch_ended or self.step == self.total_steps:
                return stopped
            every = self.config.checkpoint_every_steps
            if every and self.step % every == 0:
                self._save()
                sums.clock.step_done()
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

    def _log_steps(self, sums: StepSums, rate: float) -> None:
        read = sums.read(self.ranks.world_size)
        if self.log:
            values = {
                "loss": read["loss"],
                "grad_norm": gradient_norm(self.engine),
                "loss_scale": loss_scale(self.engine),
                "lr": rate,
                "images_per_second": read["images_per_second"] * self.ranks.world_size,
                "mfu": self._mfu(read["images_per_second"]),
                "data_wait_share": read["data_wait_share"],
                "memory_gib": memory_gib(),
                "damaged": self.stream.num_damaged,
                "skipped": self.skipped.total,
                "samples": read["samples"],
            }
            self.log.write("step", self.step, values)

    def _mfu(self, images_per_second: float) -> float | None:
        """Of this rank, as all others; None where the device's peak is not known, or the head alone computes."""
        if not self.peak or not self.flops or self.features:
            return None
        # A frozen backbone has a forward pass alone.
        passes = PASSES if self.step > self.frozen_steps else 1
        return utilisation(images_per_second, passes * self.flops, self.peak)

    def _validate(self, epoch: int) -> float | None:
        """Against the teacher, on the val split, if it has samples. Returns what is least in the best checkpoint.

        Raises UserError where a student is to be selected by them, and none can be decoded.
        """
        if not self.pictures.num_samples("val"):
            return None
        has_average = self.config.optimizer.ema_decay
        student = averaged_student(self.engine, self.config.student) if has_average else self.engine
        values = validate(student, self.pictures, self.loss, self.features.get("val"))
        if not values and self.config.select != "last":
            raise UserError(
                f"{self.config.view}: no picture of its val split, to select the best by, can be decoded",
                "see `xmodal verify` of its datasets, or set select=last",
            )
        if self.log and values:
            self.log.write("validation", self.step, {"epoch": epoch, **values})
        return selection_cost(values, self.config.select)

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
            keep=self.keep,
        )
        if self.upload:
            self.upload.start()
