"""What every verb shares on Ray: sessions, run folders, planning, reading, workers, the driver."""
