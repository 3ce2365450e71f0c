"""What reads and changes the configs of the toolboxes."""
