"""Speed, as ratios against references written the way others do it: same model, rows, threads and machine."""
