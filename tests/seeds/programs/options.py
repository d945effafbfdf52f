import requests
import json

url = "http://localhost:11434/api/generate"
headers = {
    "Content-Type": "application/json"
}
data = {
    "model": "deepseek-r1:1.5b",
    "prompt": "解释什么是机器学习",
    "stream": False,
    "options": {
        "temperature": 0.7,      # 控制随机性，0-2，越高越随机
        "top_p": 0.9,            # 核采样参数，0-1
        "max_tokens": 500,       # 最大生成 token 数
        "num_ctx": 2048          # 上下文窗口大小
    }
}

response = requests.post(url, headers=headers, json=data)
result = response.json()
print(result["response"])
