.PHONY: proto
proto:
	.venv/bin/python -m grpc_tools.protoc -I proto --python_out=. --pyi_out=. --grpc_python_out=. proto/searchrl/contracts/v1/*.proto
