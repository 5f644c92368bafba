// Command cmd writes api/openapi.json; `go generate ./api` runs it there.
package main

import (
	"fmt"
	"os"

	"github.com/volant-edge/volant/internal/openapi"
)

func main() {
	doc, err := openapi.Generate("..")
	if err == nil {
		err = os.WriteFile("openapi.json", doc, 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}
