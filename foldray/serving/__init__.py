"""A server of one model at all of its depths, with the HTTP API of OpenAI's transcriptions."""
