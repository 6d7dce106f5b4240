"""Which defaults the data picks: every option beside its neighbours, at equal total bytes."""
