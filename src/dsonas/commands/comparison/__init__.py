"""The comparison of searched, random and hand-made networks as a study of many small jobs."""
