"""What a stage read, dropped and refused."""

from __future__ import annotations

from dataclasses import dataclass, field


class DataError(ValueError):
    """Data that cannot be used; the message says where, what is wrong and what to do."""


@dataclass
class LoadReport:
    """Counts of one stage: `dropped` and `noted` map a reason to the rows' ids or places.

    `origin` begins the message of every refusal. With a `remedy`, what to do about a bad row, the
    first one is refused rather than dropped.
    """

    what: str
    origin: str = ""
    remedy: str = ""
    read: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    noted: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Rows read and not dropped."""
        return self.read - sum(map(len, self.dropped.values()))

    def drop(self, reason: str, row: str) -> None:
        """Count a row as dropped.

        Raises:
            DataError: bad rows are refused.
        """
        self.dropped.setdefault(reason, []).append(row)
        if self.remedy:
            raise self.refusal(f"{row}: {reason}. {self.remedy}")

    def note(self, reason: str, row: str) -> None:
        """Count something about a row that stays."""
        self.noted.setdefault(reason, []).append(row)

    def refusal(self, message: str) -> DataError:
        """The error to raise: where, what is wrong, and what was read until then."""
        counts = f"\n{self.summary()}" if self.read else ""
        return DataError(f"{self.origin}: {message}{counts}")

    def summary(self, names: int = 5) -> str:
        """A line in all and one for each reason, with the first `names` rows it applies to."""
        lines = [f"{self.what}: {self.read:,} read, {self.kept:,} kept."]
        for verb, rows_by_reason in (("Dropped", self.dropped), ("Noted", self.noted)):
            for reason, rows in rows_by_reason.items():
                more = ", ..." if len(rows) > names else ""
                lines.append(f"{verb} {len(rows):,}: {reason} ({', '.join(rows[:names])}{more}).")
        return "\n".join(lines)
