"""Every loss by its recipe name, with what a person wants to know before choosing it. Imports no torch."""

from understudy.losses.catalogue import dense, embeddings, gradients, logits, maps, relations
from understudy.losses.catalogue.row import Loss as Loss

FAMILIES: dict[str, dict[str, Loss]] = {
    "Logits": logits.ROWS,
    "Feature maps": maps.ROWS,
    "Dense maps and tokens": dense.ROWS,
    "Embeddings": embeddings.ROWS,
    "Relations between samples": relations.ROWS,
    "Gradients": gradients.ROWS,
}

LOSSES: dict[str, Loss] = {name: row for rows in FAMILIES.values() for name, row in rows.items()}
