package main

import (
	"github.com/spf13/cobra"
)

func newDoctor(g *globals) *cobra.Command {
	return &cobra.Command{Use: "doctor", Short: "Say what this machine can do, and what is missing", Args: cobra.NoArgs}
}
