"""I1 and half of I5, from what the processes of the deployment recorded of one session."""

from torpor import probes
from torpor.testing import recording
from torpor.testing.violations import Invariant, Say


class Claims:
    """Who claimed a session, and what they committed. Records may come in any order."""

    def __init__(self, say: Say) -> None:
        self._say = say
        #: epoch → nonce and process.
        self._holders: dict[int, tuple[str, int]] = {}
        #: epoch → the version that its claim found.
        self._found: dict[int, int] = {}
        #: epoch → the first and the last version committed in it.
        self._ranges: dict[int, tuple[int, int]] = {}
        #: version → id of its commit.
        self._commits: dict[int, str] = {}

    def add(self, record: recording.Record) -> None:
        """Take a claim or a commit into account."""
        holder = (record.nonce, record.pid)
        known = self._holders.setdefault(record.epoch, holder)
        if known != holder:
            self._say(
                Invariant.FENCE,
                f"epoch {record.epoch} belongs to process {known[1]} (nonce {known[0][:8]}) and to "
                f"process {record.pid} (nonce {record.nonce[:8]})",
            )
        match record.point:
            case probes.Point.ACQUIRE_AFTER:
                self._claimed(record.epoch, record.version)
            case probes.Point.COMMIT_AFTER:
                self._committed(record)

    def _claimed(self, epoch: int, version: int) -> None:
        self._found[epoch] = version
        for other, (first, last) in self._ranges.items():
            if other < epoch and last > version:
                self._fenced_write(last, other, epoch, version)
            elif other >= epoch and first <= version:
                self._early_write(first, other, epoch, version)

    def _committed(self, record: recording.Record) -> None:
        version, epoch = record.version, record.epoch
        if self._commits.setdefault(version, record.commit_id) != record.commit_id:
            self._say(Invariant.FENCE, f"version {version} was committed twice")
        first, last = self._ranges.get(epoch, (version, version))
        self._ranges[epoch] = (min(first, version), max(last, version))
        for other, found in self._found.items():
            if epoch < other and version > found:
                self._fenced_write(version, epoch, other, found)
            elif epoch >= other and version <= found:
                self._early_write(version, epoch, other, found)

    def _fenced_write(self, version: int, epoch: int, later: int, found: int) -> None:
        self._say(
            Invariant.FENCE,
            f"version {version} was committed under epoch {epoch}, though epoch {later} had begun "
            f"at version {found}",
        )

    def _early_write(self, version: int, epoch: int, begun: int, found: int) -> None:
        self._say(
            Invariant.FENCE,
            f"version {version} was committed under epoch {epoch}, though it was there when epoch "
            f"{begun} began (at version {found})",
        )
