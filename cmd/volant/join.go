package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newJoinToken(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "join-token", Short: "Make, list and revoke tokens by which servers join", Aliases: []string{"join-tokens"}}
	cmd.AddCommand(newJoinTokenCreate(g), newJoinTokenList(g), newJoinTokenRevoke(g))
	return cmd
}

func newJoinTokenCreate(g *globals) *cobra.Command {
	var in api.CreateJoinToken
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token by which a server joins; it is shown this once", Args: cobra.NoArgs,
		Example: "  volant join-token create --roles edge,host --region ams\n  volant join-token create --roles edge,host,control --uses 2 --ttl 24h",
		RunE: g.ask(func(c *call) error {
			t, err := c.CreateJoinToken(c.ctx, in)
			if err != nil {
				return err
			}
			return c.say(t, func(w io.Writer) {
				// The token alone is on standard output, so that a script can take it.
				fmt.Fprintln(w, t.Token)
				at, region := "ADDRESS:4281", "REGION"
				if len(t.Addresses) > 0 {
					at = t.Addresses[0]
				}
				if t.Region != "" {
					region = t.Region
				}
				fmt.Fprintf(cleaner{c.cmd.ErrOrStderr()}, "Token %s lets %s join until %s. On the new server:\n\n\tvolant server --join %s --token TOKEN --region %s --roles %s --endpoint ITS-ADDRESS:4281\n\nKeep it: it is not shown again.\n",
					t.ID, servers(t.Uses), t.ExpiresAt.Format(time.RFC3339), at, region, strings.Join(t.Roles, ","))
			})
		}),
	}
	f := cmd.Flags()
	f.StringSliceVar(&in.Roles, "roles", []string{"edge", "host"}, "roles that the server may have: edge, host, control")
	f.StringVar(&in.Region, "region", "", "the only region it may join in (default: any)")
	f.StringVar(&in.TTL, "ttl", "1h", "how long the token is good")
	f.IntVar(&in.Uses, "uses", 1, "how many servers may join by it")
	f.StringVar(&in.Name, "name", "", "what it is for")
	return cmd
}

func servers(n int) string {
	if n == 1 {
		return "one server"
	}
	return fmt.Sprintf("%d servers", n)
}

func newJoinTokenList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens by which servers join", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: g.ask(func(c *call) error {
			ts, err := c.JoinTokens(c.ctx)
			if err != nil {
				return err
			}
			return sayRows(c, ts, []string{"ID", "NAME", "ROLES", "REGION", "USES LEFT", "EXPIRES", "BY", "JOINED"}, func(t api.JoinToken) []string {
				region, until := t.Region, t.ExpiresAt.Format(time.RFC3339)
				if region == "" {
					region = "any"
				}
				if time.Now().After(t.ExpiresAt) {
					until = "expired"
				}
				return []string{t.ID, t.Name, strings.Join(t.Roles, ","), region, fmt.Sprint(t.Uses), until, t.CreatedBy, strings.Join(t.Nodes, " ")}
			})
		}),
	}
}

func newJoinTokenRevoke(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID...", Short: "Revoke tokens by ID; servers that joined by them stay", Args: cobra.MinimumNArgs(1),
		RunE: g.ask(func(c *call) error {
			for _, id := range c.args {
				if err := c.RevokeJoinToken(c.ctx, id); err != nil {
					return err
				}
			}
			return c.say(map[string][]string{"revoked": c.args}, func(w io.Writer) {
				fmt.Fprintf(w, "Revoked %s.\n", strings.Join(c.args, ", "))
			})
		}),
	}
}
