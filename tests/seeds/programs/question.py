import requests
import json

from sqlalchemy import false

def test_chromadb():
    # 设置请求的 URL 和数据
    url = "http://localhost:11434/api/generate"
    data = {
        "model": "deepseek-r1:7b",
        "prompt": "Why is the sky blue?",
        'stream': False,
    }

    # 将数据转换为 JSON 格式
    headers = {"Content-Type": "application/json"}

    # 发送 POST 请求
    with requests.post(url,data=json.dumps(data), stream=False, headers=headers) as response:
        for line in response.iter_lines():
            if line:
                print(json.loads(line).get("response"))


# Press the green button in the gutter to run the script.
if __name__ == '__main__':
    test_chromadb()

