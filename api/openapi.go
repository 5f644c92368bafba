package api

import _ "embed" // openapi.json

//go:generate go run ../internal/openapi/cmd

// OpenAPI is the API's OpenAPI 3.1 document, made of the routes and of the types here.
//
//go:embed openapi.json
var OpenAPI []byte
