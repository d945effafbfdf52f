import requests
import json

def generate_response(prompt, model="deepseek-r1:1.5b"):
    url = "http://localhost:11434/api/generate"
    data = {
        "model": model,
        "prompt": prompt,
        "stream": False
    }
    response = requests.post(url, json=data)
    return response.json()["response"]

prompts = ["你好", "介绍一下Python", "什么是机器学习"]
for prompt in prompts:
    print(f"问题: {prompt}")
    print(f"回答: {generate_response(prompt)}\n")
