"""One round and the loop over rounds: agreement, client half, server half, records, cost."""
