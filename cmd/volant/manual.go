//go:build manual

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra/doc"
)

// With the tag manual the program writes the man pages, and the completions of shells, of the command tree
// into a directory: `go run -tags manual ./cmd/volant DIR`.
func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: manual DIR")
		os.Exit(2)
	}
	if err := writeManual(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func writeManual(dir string) error {
	man := filepath.Join(dir, "man")
	if err := os.MkdirAll(man, 0o755); err != nil {
		return err
	}
	root := newRoot(&globals{})
	root.DisableAutoGenTag = true // pages of the same source are the same
	head := &doc.GenManHeader{Title: "VOLANT", Section: "1", Source: "Volant", Manual: "Volant"}
	if err := doc.GenManTree(root, head, man); err != nil {
		return err
	}
	root.InitDefaultCompletionCmd()
	if err := root.GenBashCompletionFileV2(filepath.Join(dir, "volant.bash"), true); err != nil {
		return err
	}
	if err := root.GenZshCompletionFile(filepath.Join(dir, "volant.zsh")); err != nil {
		return err
	}
	return root.GenFishCompletionFile(filepath.Join(dir, "volant.fish"), true)
}
