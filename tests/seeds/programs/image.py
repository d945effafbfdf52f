def download_image(url):
    """
    根据指定 URL 下载图片并返回图片内容。
    """
    try:
        response = requests.get(url)
        response.raise_for_status()  # 检查请求是否成功
        return response.content
    except requests.RequestException as e:
        print(f"Error downloading image: {e}")
        return None


def image_to_base64(image_data):
    """
    将图片数据转换为 Base64 编码。
    """
    try:
        # 使用 BytesIO 将图片数据转换为内存中的文件对象
        image = Image.open(BytesIO(image_data))
        buffered = BytesIO()
        image.save(buffered, format="PNG")  # 保存为 PNG 格式
        img_str = base64.b64encode(buffered.getvalue()).decode("utf-8")
        return img_str
    except Exception as e:
        print(f"Error converting image to base64: {e}")
        return None



def test_image():
    url = "https://img2.baidu.com/it/u=1093890935,1920906750&fm=253&fmt=auto&app=138&f=JPEG?w=800&h=1427"  # 替换为你的图片 URL
    image_data = download_image(url)

    if image_data:
        base64_image = image_to_base64(image_data)
    # 设置请求的 URL 和数据
    url = "http://localhost:11434/api/generate"
    data = {
        "model": "deepseek-r1:7b",
        "prompt": "这张图片是什么？",
        'stream': False,
        "images": [
            base64_image
        ]

    }

    # 将数据转换为 JSON 格式
    headers = {"Content-Type": "application/json"}

    # 发送 POST 请求并启用流式处理
    with requests.post(url, data=json.dumps(data), stream=False, headers=headers) as response:
        for line in response.iter_lines():
            if line:
                print(json.loads(line).get("response"))
