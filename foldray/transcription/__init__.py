"""Text for audio of any length: chunks, words with times, subtitles."""
