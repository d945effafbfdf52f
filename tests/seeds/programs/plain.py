import requests
import json

url = "http://localhost:11434/api/generate"
headers = {
    "Content-Type": "application/json"
}
data = {
    "model": "deepseek-r1:1.5b",
    "prompt": "你好，请介绍一下你自己",
    "stream": False
}

response = requests.post(url, headers=headers, json=data)
result = response.json()

# 提取响应文本
response_text = result["response"]
print(response_text)

# 打印完整响应（调试用）
print(json.dumps(result, indent=2))
