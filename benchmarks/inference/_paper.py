"""What the NeuroTrails paper measured with DeepSparse on a CPU (its Table 7), to stand beside our numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperRow:
    """One row of Table 7: WRN28-10 on CIFAR-100 in DeepSparse; the paper names neither CPU nor number of threads.

    Args:
        throughput: Images per second.
        latency: Milliseconds per batch, mean.
        spread: Milliseconds, the ± of the latency.
    """

    throughput: float
    latency: float
    spread: float

    @property
    def against_single(self) -> float:
        """Throughput over that of the paper's single dense model."""
        return self.throughput / SINGLE.throughput


SINGLE = PaperRow(55.81, 17.90, 0.72)
ENSEMBLE = PaperRow(18.65, 53.61, 2.98)
NEUROTRAILS = {
    0.8: PaperRow(26.46, 37.78, 1.33),
    0.95: PaperRow(52.05, 19.20, 2.45),
    0.99: PaperRow(68.64, 14.55, 0.75),
}
