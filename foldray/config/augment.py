"""Augmentation."""

from pydantic import Field, field_validator, model_validator

from foldray.config.section import Section, without_secret


class AugmentSpec(Section):
    """What is done to audio before the model hears it, drawn anew for each utterance and epoch.

    Masks are SpecAugment (arXiv 1904.08779) on log-mel features; waveform families mask by their own
    `mask_time_prob`.
    """

    speeds: tuple[float, ...] = Field(
        (1.0,),
        min_length=1,
        description="Speeds that each utterance is heard at, one drawn for each epoch, such as [0.9, 1.0, 1.1] "
        "(Ko et al., Interspeech 2015).",
    )
    volume_db: float = Field(0.0, ge=0, le=40, description="Most decibels that audio is made louder or softer by.")
    noise_share: float = Field(0.0, ge=0, le=1, description="Share of the utterances that noise is added to.")
    noise_snr_db: tuple[float, float] = Field(
        (10.0, 30.0), description="Least and greatest distance of speech above noise, in decibels."
    )
    noise_path: str | None = Field(
        None, description="Folder or URI with noise recordings; default: noise of random colour, made on the spot."
    )
    from_epoch: int = Field(
        0, ge=0, description="First epoch with masks: from the start they keep CTC from scratch on its plateau."
    )
    time_masks: int = Field(0, ge=0, description="Time masks on each utterance.")
    time_mask_seconds: float = Field(0.3, gt=0, description="Longest time mask.")
    time_mask_share: float = Field(0.2, gt=0, le=1, description="Longest time mask as a share of the utterance.")
    frequency_masks: int = Field(0, ge=0, description="Frequency masks on each utterance.")
    frequency_mask_bins: int = Field(12, ge=1, description="Widest frequency mask in mel bins.")

    @field_validator("speeds")
    @classmethod
    def _are_speeds(cls, speeds: tuple[float, ...]) -> tuple[float, ...]:
        for speed in speeds:
            if not 0.5 <= speed <= 2:
                raise ValueError(
                    f"{speed:g} is no speed of speech; give factors from 0.5 to 2, such as [0.9, 1.0, 1.1]"
                )
        return speeds

    @field_validator("noise_snr_db")
    @classmethod
    def _ascends(cls, snr: tuple[float, float]) -> tuple[float, float]:
        if snr[0] > snr[1]:
            raise ValueError(f"the least distance comes first; say [{snr[1]:g}, {snr[0]:g}]")
        return snr

    @field_validator("noise_path")
    @classmethod
    def _has_no_secret(cls, path: str | None) -> str | None:
        return path and without_secret(path)

    @model_validator(mode="after")
    def _uses_its_noise(self) -> "AugmentSpec":
        if self.noise_path and not self.noise_share:
            raise ValueError("noise_path: without a noise_share it does nothing; say augment.noise_share=0.3")
        return self
