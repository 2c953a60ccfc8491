"""Augmentation."""

from pydantic import Field, field_validator, model_validator

from foldray.config.section import Section, Uri


class AugmentSpec(Section):
    """Augmentation of training audio, drawn for each utterance and epoch.

    Masks are SpecAugment (arXiv 1904.08779) on log-mel features; waveform models have masks of their own
    (`model.config.mask_time_prob`).
    """

    speeds: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Speed factors, one drawn for each utterance and epoch, such as [0.9, 1.0, 1.1] "
        "(Ko et al., Interspeech 2015).",
    )
    volume_db: float = Field(0.0, ge=0, le=40, description="Largest change of volume, up or down, in decibels.")
    noise_share: float = Field(0.0, ge=0, le=1, description="Share of utterances with added noise.")
    noise_snr_db: tuple[float, float] = Field(
        (10.0, 30.0), description="Range of the signal-to-noise ratio in decibels."
    )
    noise_path: Uri | None = Field(
        None, description="Folder or URI with noise recordings; default: synthetic noise of random colour."
    )
    from_epoch: int = Field(
        0,
        ge=0,
        description="First epoch with masks. Masks in the first epochs can keep CTC from scratch on its plateau.",
    )
    time_masks: int = Field(0, ge=0, description="Number of time masks per utterance.")
    time_mask_seconds: float = Field(0.3, gt=0, description="Longest time mask in seconds.")
    time_mask_share: float = Field(0.2, gt=0, le=1, description="Longest time mask as a share of the utterance.")
    frequency_masks: int = Field(0, ge=0, description="Number of frequency masks per utterance.")
    frequency_mask_bins: int = Field(12, ge=1, description="Widest frequency mask in mel bins.")

    @field_validator("speeds")
    @classmethod
    def _are_speeds(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        for speed in speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(f"{speed:g} must be a factor from 0.5 to 2, such as [0.9, 1.0, 1.1]")
        return speeds

    @field_validator("noise_snr_db")
    @classmethod
    def _ascends(cls, snr: tuple[float, float]) -> tuple[float, float]:
        if snr[0] > snr[1]:
            raise ValueError(f"the lower ratio comes first; set it to [{snr[1]:g}, {snr[0]:g}]")
        return snr

    @model_validator(mode="after")
    def _uses_its_noise(self) -> "AugmentSpec":
        if self.noise_path and not self.noise_share:
            raise ValueError("noise_path: has no effect without a noise_share; set augment.noise_share=0.3")
        return self
