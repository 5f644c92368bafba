package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/volant-edge/volant/api"
)

func newOrgs(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "orgs", Short: "Make and list organizations"}
	list := &cobra.Command{
		Use: "list", Short: "List the organizations the token may see", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			orgs, err := c.Orgs(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, orgs, func(w io.Writer) {
				rows := [][]string{{"SLUG", "NAME", "APPS", "AGE"}}
				for _, o := range orgs {
					rows = append(rows, []string{o.Slug, o.Name, fmt.Sprint(o.AppCount), ago(o.CreatedAt)})
				}
				table(w, rows)
			})
		},
	}
	var name string
	create := &cobra.Command{
		Use: "create SLUG", Short: "Make an organization (root token only)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			o, err := c.CreateOrg(cmd.Context(), api.CreateOrg{Slug: args[0], Name: name})
			if err != nil {
				return err
			}
			return g.print(cmd, o, func(w io.Writer) {
				fmt.Fprintf(w, "Created organization %s.\nNext: volant tokens create --org %s --scope admin\n", o.Slug, o.Slug)
			})
		},
	}
	create.Flags().StringVar(&name, "name", "", "its name for people")
	cmd.AddCommand(list, create)
	return cmd
}

func newTokens(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: "tokens", Short: "Make, list and revoke tokens", Aliases: []string{"token"}}
	cmd.AddCommand(newTokensCreate(g), newTokensList(g), newTokensRevoke(g), newTokensCurrent(g))
	return cmd
}

func newTokensCreate(g *globals) *cobra.Command {
	var in api.CreateToken
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token; it is shown this once", Args: cobra.NoArgs,
		Example: "  volant tokens create --app web --scope deploy --expiry 720h\n  volant tokens create --org team --scope admin --name ops",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			t, err := c.CreateToken(cmd.Context(), in)
			if err != nil {
				return err
			}
			return g.print(cmd, t, func(w io.Writer) {
				// The token alone is on standard output, so that a script can take it.
				fmt.Fprintln(w, t.Secret)
				fmt.Fprintf(cleaner{cmd.ErrOrStderr()}, "Token %s: %s. %s. Keep it: it is not shown again.\n", t.ID, tokenFor(t.Token), tokenUntil(t.Token))
			})
		},
	}
	f := cmd.Flags()
	f.StringVarP(&in.AppName, "app", "a", "", "the only app it may act on")
	f.StringVar(&in.OrgSlug, "org", "", "its organization (default: the one of your token; personal for the root token)")
	f.StringSliceVar(&in.Scopes, "scope", []string{"deploy"}, "read, deploy or admin; each includes the ones before it")
	f.StringVar(&in.Name, "name", "", "its name, which is who did what in `volant why`")
	f.StringVar(&in.Expiry, "expiry", "", "how long it lives, such as 720h; 0s is for ever (default a year)")
	return cmd
}

func tokenFor(t api.Token) string {
	what := "organization " + t.OrgSlug
	switch {
	case t.AppName != "":
		what = "app " + t.AppName
	case t.OrgSlug == "*":
		what = "everything"
	}
	return fmt.Sprintf("%s %s", strings.Join(t.Scopes, ","), what)
}

func tokenUntil(t api.Token) string {
	if t.ExpiresAt.IsZero() {
		return "It does not expire"
	}
	return "It expires at " + t.ExpiresAt.Format(time.RFC3339)
}

func newTokensList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the tokens you administer", Args: cobra.NoArgs, Aliases: []string{"ls"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			tokens, err := c.Tokens(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, tokens, func(w io.Writer) {
				rows := [][]string{{"ID", "NAME", "MAY", "AGE", "BY", "EXPIRES"}}
				for _, t := range tokens {
					until := "never"
					if !t.ExpiresAt.IsZero() {
						until = t.ExpiresAt.Format(time.DateOnly)
					}
					name := t.Name
					if t.Current {
						name += " (this one)"
					}
					rows = append(rows, []string{t.ID, name, tokenFor(t), ago(t.CreatedAt), t.CreatedBy, until})
				}
				table(w, rows)
			})
		},
	}
}

func newTokensRevoke(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID...", Short: "Revoke tokens by ID", Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			for _, id := range args {
				if err := c.RevokeToken(cmd.Context(), id); err != nil {
					return err
				}
			}
			return g.print(cmd, map[string][]string{"revoked": args}, func(w io.Writer) {
				fmt.Fprintf(w, "Revoked %s.\n", strings.Join(args, ", "))
			})
		},
	}
}

func newTokensCurrent(g *globals) *cobra.Command {
	return &cobra.Command{
		Use: "current", Short: "Say what your token is", Args: cobra.NoArgs, Aliases: []string{"whoami"},
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := g.client()
			if err != nil {
				return err
			}
			now, err := c.CurrentToken(cmd.Context())
			if err != nil {
				return err
			}
			return g.print(cmd, now, func(w io.Writer) {
				for _, t := range now.Tokens {
					fmt.Fprintf(w, "Token %s (%s) of organization %s", t.TokenID, t.User, t.OrgSlug)
					if len(t.Apps) > 0 {
						fmt.Fprintf(w, ", for app %s alone", strings.Join(t.Apps, ", "))
					}
					fmt.Fprintln(w, ".")
				}
			})
		},
	}
}
