import msgspec
from flask import Flask

app = Flask(__name__)


@app.get("/")
def root():
    return msgspec.json.encode({"hello": "world"})


app.run("0.0.0.0", 8000)
