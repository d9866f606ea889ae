"""ConversationDataset: a file of conversations as documents of token ids, and documents as padded batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sft.batching import Batch, collate
from sft.errors import DataError
from sft.formats import MAX_SHOWN_PROBLEMS, Conversation
from sft.masking import Document, Masker


class ConversationDataset(Sequence[Document]):
    """Documents in the order of their rows, with what happened on the way counted.

    Attributes:
        counts: rows, documents, truncated, dropped (nothing trained was left within `max_length`), tokens,
            trained_tokens.
    """

    def __init__(self, conversations: Iterable[Conversation], masker: Masker, max_length: int) -> None:
        """
        Raises:
            DataError: rows that cannot be masked, each with file and line; or no document is left.
        """
        self._pad_token_id = masker.pad_token_id
        self.counts: Counter[str] = Counter()
        self._documents: list[Document] = []
        problems: list[str] = []
        for conversation in conversations:
            self.counts["rows"] += 1
            try:
                for document in masker.documents(conversation):
                    self._add(document, max_length)
            except DataError as error:
                problems.append(f"{conversation.source}: {error}")
        if problems:
            shown = problems[:MAX_SHOWN_PROBLEMS]
            raise DataError("\n".join([*shown, f"{len(problems)} of {self.counts['rows']} rows cannot be masked."]))
        if not self._documents:
            raise DataError(f"no row has a trained token within max_length {max_length}. Raise max_length.")

    def _add(self, document: Document, max_length: int) -> None:
        if len(document) > max_length:
            document = Document(document.input_ids[:max_length], document.trained[:max_length])
            if not document.num_trained_tokens:
                self.counts["dropped"] += 1
                return
            self.counts["truncated"] += 1
        self.counts["documents"] += 1
        self.counts["tokens"] += len(document)
        self.counts["trained_tokens"] += document.num_trained_tokens
        self._documents.append(document)

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:  # type: ignore[override]
        return self._documents[index]

    def batch(self, rows: Sequence[int]) -> Batch:
        """The documents of these rows, padded on the right; no rows give one token without a label, so that a rank
        with nothing to do can still take part in the collectives of a step."""
        return collate([self._documents[row] for row in rows], self._pad_token_id)

    @property
    def summary(self) -> str:
        """One line for the log."""
        parts = [f"{self.counts['documents']:,} documents", f"{self.counts['tokens']:,} tokens"]
        parts.append(
            f"{self.counts['trained_tokens']:,} trained ({self.counts['trained_tokens'] / self.counts['tokens']:.0%})"
        )
        parts += [f"{self.counts[name]:,} {name}" for name in ("truncated", "dropped") if self.counts[name]]
        return ", ".join(parts)
