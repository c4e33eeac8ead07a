"""`ftkit serve`: OpenAI's files, fine-tuning, models, chat and batch endpoints, on this machine, with a real trainer behind.

Light: FastAPI and uvicorn are imported when the command runs, torch when the first model is loaded.
"""
