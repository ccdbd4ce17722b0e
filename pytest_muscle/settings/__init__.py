"""What a run is asked to do: ``options`` can be set, ``loading`` reads them, ``values`` come of it."""
