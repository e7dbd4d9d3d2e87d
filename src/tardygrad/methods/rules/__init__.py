"""What methods are made of: worker rules, server rules, and the settings that several share."""
