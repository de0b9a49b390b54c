"""Who executes a lock: this program itself (:mod:`.embedded`, the default), BuildKit, or Nix. Siblings of one protocol
(:mod:`.protocol`); :mod:`.choice` opens one by name, and nobody else knows what they are."""
